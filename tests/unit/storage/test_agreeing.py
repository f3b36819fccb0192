"""Working copies and a store that have drifted apart: what is sent, brought, deleted or left alone, whatever happened."""

import hashlib
import json
import shutil
import tempfile
import threading
from pathlib import Path

import object_store
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_store import finish_epoch, serving
from states import a_state, next_epoch

from statten.config import load_config
from statten.errors import Failed, Superseded, UserError
from statten.files import writer
from statten.storage.mirror import (
    Mirror,
    Sender,
    at,
    check_place,
    check_store,
    everything,
    look,
    mirror_of,
    publish,
    refresh,
    taken_names,
    work,
)
from statten.storage.run import Run, locate
from statten.storage.store import Store, join_uri, working_copy
from statten.storage.writer import RunWriter

CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        for name, value in object_store.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield server


def a_run(uri: str, epochs: int = 0, name: str = "a") -> Run:
    run = Run.create(working_copy(uri) / name, load_config("digits"))
    for epoch in range(1, epochs + 1):
        finish_epoch(run.path, epoch, keep=9, size=100)
    return run


def there(uri: str) -> set[str]:
    return set(Store(uri).listing("a")) - {"attempt", ".copy"}


def kept(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").glob("*"))


class Calls:
    """The objects that are written and deleted, in their order."""

    def __init__(self, monkeypatch):
        self.made: list[str] = []
        put, delete = Store.put, Store.delete
        monkeypatch.setattr(Store, "put", lambda store, path, name: (self.made.append(name[2:]), put(store, path, name))[1])
        monkeypatch.setattr(Store, "delete", lambda store, name: (self.made.append(f"- {name[2:]}"), delete(store, name))[1])

    def taken(self) -> list[str]:
        made, self.made = self.made, []
        return made


# --- sending


def test_only_what_changed_is_sent_and_what_went_is_deleted(uri, monkeypatch):
    run, calls = a_run(uri, epochs=1), Calls(monkeypatch)
    mirror = mirror_of(run.path)
    mirror.push()
    first = [f"checkpoints/epoch-0001/{name}" for name in CHECKPOINT]
    assert calls.taken() == [*first, "config.yaml", "metrics.jsonl", "run.json"]
    mirror.push()
    assert calls.taken() == [], "nothing has changed"
    (run.path / "progress.json").write_text("{}")
    (run.path / "ray").mkdir()
    (run.path / "ray" / "scratch").write_text("x")
    (run.path / "train.log").write_text("x")
    finish_epoch(run.path, 2, keep=9, size=100)
    (run.path / "result.json").write_text("{}")
    mirror.push()
    second = [name.replace("0001", "0002") for name in first]
    assert calls.taken() == [*second, "progress.json", "train.log", "metrics.jsonl", "result.json"]
    (run.path / "progress.json").unlink()
    shutil.rmtree(run.path / "checkpoints" / "epoch-0001")
    mirror.push()
    assert calls.taken() == ["- progress.json"], "who has not all checkpoints deletes none"
    mirror.push(whole=True)
    assert calls.taken() == [f"- {first[2]}", f"- {first[0]}", f"- {first[1]}"], "without state.json there is none"
    assert there(uri) == {*second, "config.yaml", "run.json", "metrics.jsonl", "result.json", "train.log"}
    mirror.push(whole=True)
    assert calls.taken() == []


def test_a_checkpoint_of_the_same_name_ends_before_it_is_overwritten(uri, monkeypatch):
    run, calls = a_run(uri, epochs=1), Calls(monkeypatch)
    mirror = mirror_of(run.path)
    mirror.push()
    calls.taken()
    folder = run.path / "checkpoints" / "epoch-0001"
    (folder / "state.json").touch()  # the same content, written again
    mirror.push()
    names = [f"checkpoints/epoch-0001/{name}" for name in CHECKPOINT]
    assert calls.taken() == names, "sent again, it stays whole"
    shutil.rmtree(folder)
    (run.path / "metrics.jsonl").write_text("")
    finish_epoch(run.path, 1, keep=9, size=101)
    mirror.push()
    assert calls.taken() == [f"- {names[2]}", *names, "metrics.jsonl"]


def test_a_part_alone_is_sent(uri, monkeypatch):
    run, calls = a_run(uri, epochs=1), Calls(monkeypatch)
    mirror_of(run.path).push()
    (run.path / "evaluations" / "e").mkdir(parents=True)
    for name in ("evaluations/e/report.json", "evaluations/e2.json", "evaluation.json"):
        (run.path / name).write_text("{}")
    calls.taken()
    publish(run.path / "evaluations" / "e")
    assert calls.taken() == ["evaluations/e/report.json"]
    publish(run.path / "evaluation.json")
    assert calls.taken() == ["evaluation.json"]
    (run.path / "evaluations/e/report.json").unlink()
    publish(run.path / "evaluation.json")
    assert calls.taken() == [], "what went elsewhere is left"
    publish(run.path / "evaluations" / "e")
    assert calls.taken() == ["- evaluations/e/report.json"]


@pytest.mark.parametrize("changes", [0, 1])
def test_an_older_attempt_sends_nothing(changes, uri, monkeypatch):
    run = a_run(uri, epochs=1)
    with run.writing() as attempt:
        mirror_of(run.path).push(attempt)
        calls = Calls(monkeypatch)
        if changes:
            (run.path / "train.log").write_text("of an older one")
        with pytest.raises(Superseded, match=r"s3://bucket/.*/a\?.*: a newer attempt writes this run; this one stops"):
            mirror_of(run.path).push("older")
        with pytest.raises(Superseded):
            at(run.address, "older")
        assert calls.taken() == []


def test_an_attempt_that_is_overtaken_while_it_sends_stops_at_the_next_object(uri, monkeypatch):
    run, sent = a_run(uri, epochs=1), []
    with run.writing() as attempt:
        finish_epoch(run.path, 2, keep=9, size=100)
        put, store = Store.put, Store(uri)

        def overtaken(self, path, name):
            put(self, path, name)
            sent.append(name)
            store.write("a/attempt", json.dumps({**json.loads(store.read("a/attempt")), "attempt": "newer"}).encode())

        monkeypatch.setattr(Store, "put", overtaken)
        with pytest.raises(Superseded):
            mirror_of(run.path).push(attempt)
        assert len(sent) == 1
        shutil.rmtree(run.path / "checkpoints" / "epoch-0001")
        with pytest.raises(Superseded):
            mirror_of(run.path).push(attempt, whole=True)
        assert "checkpoints/epoch-0001/state.json" in there(uri)


def test_a_copy_that_training_left_for_another_machine_sends_nothing_more(uri, monkeypatch):
    """Of one attempt: its machine was cut off, the workers went on elsewhere, and it comes back."""
    run = a_run(uri, epochs=1)
    with run.writing() as attempt:
        mirror_of(run.path).claim(attempt)
        finish_epoch(run.path, 2, keep=9, size=100)
        mirror_of(run.path).push(attempt, whole=True)
        before = there(uri)
        Store(uri).write("a/.copy", b"another machine's")
        finish_epoch(run.path, 3, keep=9, size=100)
        with pytest.raises(Superseded, match="a worker on another machine writes this run"):
            mirror_of(run.path).push(attempt, whole=True)
        assert there(uri) == before


# --- bringing


def test_what_belongs_to_a_look_to_work_and_to_neither():
    files = {
        "config.yaml": (1, 1), "metrics.jsonl": (1, 1), "initial.safetensors": (0, 1), "tensorboard/events": (0, 0),
        "checkpoints/epoch-0001/state.json": (0, 1), "evaluations/e/report.json": (0, 0),
    }  # fmt: skip
    assert {file: (look(file), work(file)) for file in files} == files and all(map(everything, files))


def test_another_machine_sees_what_it_asks_for(uri, elsewhere):
    run = a_run(uri, epochs=2)
    (run.path / "evaluations" / "e").mkdir(parents=True)
    (run.path / "evaluations" / "e" / "report.json").write_text("{}")
    (run.path / "initial.safetensors").write_text("weights")
    with run.writing():
        pass
    elsewhere("there")
    path = working_copy(uri) / "a"
    refresh(working_copy(uri))
    assert Run(path).config == run.config and len(Run(path).metrics()) == 2
    assert kept(path) == [] and not (path / "evaluations").exists() and not (path / "initial.safetensors").exists()
    refresh(path / "evaluations")
    assert (path / "evaluations" / "e" / "report.json").is_file() and kept(path) == []
    mirror_of(path).fetch("epoch-0001")
    assert kept(path) == ["epoch-0001"] and (path / "checkpoints" / "epoch-0001").stat().st_mode & 0o777 == 0o755
    mirror_of(path).fetch("epoch-0007")
    assert kept(path) == ["epoch-0001", "epoch-0002"], "the newest in the place of one that is not there"
    attempt = "of a test"
    Store(uri).write("a/attempt", json.dumps(writer(attempt=attempt)).encode())
    elsewhere("worker")
    path = at(run.address, attempt)
    assert kept(path) == ["epoch-0001", "epoch-0002"] and (path / "initial.safetensors").is_file()
    assert (path / "attempt").read_text() == attempt and not (path / "evaluations").exists()
    owner = Store(uri).read("a/.copy")
    assert at(run.address, attempt, writes=True) == path and Store(uri).read("a/.copy") != owner
    assert at(str(run.path), "anything") == run.path, "a folder that all machines see"


def test_a_checkpoint_without_its_state_is_none_yet(uri, elsewhere):
    run = a_run(uri, epochs=2)
    mirror_of(run.path).push()
    Store(uri).delete("a/checkpoints/epoch-0002/state.json")
    elsewhere("there")
    path = working_copy(uri) / "a"
    refresh(path)
    mirror_of(path).fetch("epoch-0002")
    assert kept(path) == ["epoch-0001"]
    Store(uri).delete("a/checkpoints/epoch-0001/state.json")
    shutil.rmtree(path / "checkpoints")
    mirror_of(path).fetch("epoch-0001")
    assert kept(path) == []


@pytest.mark.parametrize("damage", ["flipped", "missing", "unsealed"])
def test_a_checkpoint_that_arrives_damaged_is_not_taken_and_leaves_nothing(damage, uri, elsewhere, caplog):
    run = a_run(uri, epochs=1)
    mirror_of(run.path).push()
    store, name = Store(uri), "a/checkpoints/epoch-0001/model.safetensors"
    if damage == "flipped":
        content = bytearray(store.read(name))
        content[3] ^= 1
        store.write(name, bytes(content))
    elif damage == "missing":
        store.delete(name)
    else:
        store.write("a/checkpoints/epoch-0001/state.json", b"{}")
    elsewhere("there")
    path = working_copy(uri) / "a"
    refresh(path)
    mirror_of(path).pull(everything)
    assert not (path / "checkpoints").exists() or list((path / "checkpoints").iterdir()) == []
    assert "epoch-0001 is damaged in the store; the checkpoint before it counts" in caplog.text


def test_a_copy_that_another_process_is_mirroring_is_left_to_it(uri, elsewhere):
    run = a_run(uri, epochs=1)
    mirror_of(run.path).push()
    elsewhere("there")
    path, release, held = working_copy(uri) / "a", threading.Event(), threading.Event()
    refresh(path)
    (path / "metrics.jsonl").unlink()

    def hold() -> None:
        with mirror_of(path)._locked():
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    refresh(path, wait=False)
    assert not (path / "metrics.jsonl").exists()
    threading.Timer(0.1, release.set).start()
    refresh(path)
    holder.join()
    assert (path / "metrics.jsonl").exists()


def test_what_was_changed_in_the_store_is_brought_and_what_went_there_goes_here(uri, elsewhere):
    run = a_run(uri, epochs=1)
    with run.writing() as attempt:
        (run.path / "progress.json").write_text("{}")
        mirror_of(run.path).push(attempt)
        ours = run.path
        elsewhere("there")
        path = working_copy(uri) / "a"
        refresh(path)
        assert (path / "progress.json").exists()
        (path / "train.log").write_text("a note of this machine")
        (ours / "progress.json").unlink()
        finish_epoch(ours, 2, keep=9, size=100)
        mirror_of(ours).push(attempt)
        refresh(path)
        assert not (path / "progress.json").exists() and len(Run(path).metrics()) == 2
        assert (path / "train.log").exists(), "what the store never had"
        # In the copy that training goes on in, what changed is newer.
        Store(uri).write("a/metrics.jsonl", b"of a sender that died")
        (ours / "metrics.jsonl").write_text("newer here")
        mirror_of(ours).pull(work)
        assert (ours / "metrics.jsonl").read_text() == "newer here"
        refresh(path)
        assert (path / "metrics.jsonl").read_text() == "of a sender that died"


def test_checkpoints_of_an_overtaken_copy_go_and_those_of_the_working_one_stay(uri, elsewhere, caplog):
    run = a_run(uri, epochs=2)
    with run.writing() as attempt:
        mirror_of(run.path).push(attempt, whole=True)
        ours = run.path
        shutil.rmtree(ours / "checkpoints" / "epoch-0001")  # pruned, and not sent yet
        mirror_of(ours).pull(work)
        assert kept(ours) == ["epoch-0002"], "what was deleted here does not come back"
        finish_epoch(ours, 3, keep=9, size=100)
        mirror_of(ours).pull(work)
        assert kept(ours) == ["epoch-0002", "epoch-0003"], "what is not sent yet stays"
    elsewhere("there")
    path = working_copy(uri) / "a"
    refresh(path)
    mirror_of(path).pull(work)
    finish_epoch(path, 4, keep=9, size=100)
    assert "training went on elsewhere" not in caplog.text
    mirror_of(path).pull(work)
    assert "training went on elsewhere, without this checkpoints/epoch-0004" in caplog.text
    assert "epoch-0004" not in kept(path) and "epoch-0003" in kept(path)


FILES = ("config.yaml", "metrics.jsonl", "train.log", "evaluations/e/report.json", "result.json")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(FILES), st.integers(0, 99)),
        st.tuples(st.just("delete"), st.sampled_from(FILES[1:]), st.just(0)),
        st.tuples(st.just("checkpoint"), st.sampled_from(["epoch-0001", "epoch-0002"]), st.integers(0, 99)),
        st.tuples(st.just("prune"), st.sampled_from(["epoch-0001", "epoch-0002"]), st.just(0)),
        st.tuples(st.sampled_from(["push", "pull"]), st.just(""), st.just(0)),
    ),
    max_size=8,
)  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*") if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    }  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(actions=ACTIONS)
def test_whatever_happens_here_store_and_other_copies_end_as_this_one(actions, server):
    """The copy that training goes on in: its files change, are sent, and are asked for from the store."""
    with tempfile.TemporaryDirectory() as name:
        uri, ours, other = server.uri(f"property/{hashlib.sha256(name.encode()).hexdigest()}"), Path(name, "a"), Path(name, "b")
        mirror = Mirror(Store(uri), "a", ours)
        ours.mkdir()
        mirror.claim(None)
        for number, (action, where, content) in enumerate([*actions, ("push", "", 0)]):
            path = ours / ("checkpoints" if action in ("checkpoint", "prune") else "") / where
            before = contents(ours)
            if action == "write":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{number} {content}")
            elif action == "delete":
                path.unlink(missing_ok=True)
            elif action == "prune":
                shutil.rmtree(path, ignore_errors=True)
            elif action == "checkpoint":
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True)
                (path / "model.safetensors").write_text(f"{number} {content}")
                digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
                (path / "state.json").write_text(json.dumps({"sha256": {"model.safetensors": digest}}))
            elif action == "pull":
                mirror.pull(everything)
                assert contents(ours) == before, "what is here is never older than the store"
            else:
                mirror.push(whole=True)
                sent = Store(uri).listing("a")
                assert {file for file in sent if not file.startswith(".")} == set(contents(ours))
        shutil.rmtree(other, ignore_errors=True)
        Mirror(Store(uri), "a", other).pull(everything)
        assert contents(other) == contents(ours)


# --- the sender


def test_a_sender_waits_for_one_push_before_the_next_and_sends_the_rest_at_the_end(uri, monkeypatch):
    run, sent = a_run(uri), []
    monkeypatch.setattr(Mirror, "send", lambda mirror, attempt, whole=False: sent.append((attempt, whole)))
    sender = Sender(mirror_of(run.path), "x")
    sender.wait()
    sender.start()
    sender.start()
    sender.wait()
    assert sent == [("x", True)] * 2
    sender.close()
    assert sent == [("x", True)] * 3
    with pytest.raises(RuntimeError):
        sender.start()


def test_who_closes_does_not_wait_for_a_lost_store_again(uri, monkeypatch):
    run, tries = a_run(uri), []

    def lost(*_: object) -> None:
        tries.append(1)
        raise Failed("could not be written")

    monkeypatch.setattr(Mirror, "send", lost)
    sender = Sender(mirror_of(run.path), "x")
    sender.start()
    with pytest.raises(Failed):
        sender.wait()
    sender.close()
    assert tries == [1]


def test_what_rank_0_writes_is_in_the_store_before_others_hear_of_it(uri, monkeypatch):
    run, calls, state, heard = a_run(uri), Calls(monkeypatch), a_state(), []
    with run.writing() as attempt:
        assert RunWriter(run, run.config, attempt, rank=1)._sender is None
        writer = RunWriter(run, run.config, attempt, then=lambda row: heard.append(sorted(there(uri))))
        assert writer._sender.mirror.store.patience == run.config.scale.storage_seconds
        writer.begin(state)
        for epoch in (1, 2):
            next_epoch(state)
            writer.epoch(state)
            made = calls.taken()
            assert made.index(f"checkpoints/epoch-000{epoch}/state.json") < made.index("metrics.jsonl")
            assert {f"checkpoints/epoch-000{epoch}/{name}" for name in CHECKPOINT} < set(heard[-1])
        state.step = 1
        writer.checkpoint(state)
        writer.end(state)
        writer.close(failed=False)
        made = calls.taken()
        assert "checkpoints/epoch-0002-step-000001/state.json" in made and made[-1] == "result.json"
        # One that another attempt followed says so at its end, unless there is a better reason.
        older = [RunWriter(run, run.config, "older") for _ in range(2)]
        with pytest.raises(Superseded):
            older[0].close(failed=False)
        older[1].close(failed=True)


def test_a_run_is_opened_refreshed_and_handed_over_by_its_attempt_alone(uri, elsewhere):
    run = a_run(uri, epochs=1)
    with run.writing() as attempt:
        owner = Store(uri).read("a/.copy")
        elsewhere("worker")
        other = Run.at(run.address, attempt)
        assert other.path != run.path and kept(other.path) == ["epoch-0001"] and Store(uri).read("a/.copy") == owner
        for refused in (lambda: other.publish("older"), lambda: other.hand_over("older"), lambda: Run.at(run.address, "older")):
            with pytest.raises(Superseded):
                refused()
            assert Store(uri).read("a/.copy") == owner, "an older attempt took the run to another machine"
        assert Run.at(run.address, attempt, writes=True).path == other.path and Store(uri).read("a/.copy") != owner
        Store(uri).write("a/train.log", b"of another worker")
        other.refresh()
        assert (other.path / "train.log").read_bytes() == b"of another worker"
        assert locate(uri.replace("?", "/a?"), Path("unused")) == other.path


# --- places


def test_units_of_a_sweep_have_mirrors_of_their_own(uri):
    root = working_copy(uri)
    for inside, name in (("s", "s"), ("s/space.yaml", "s"), ("s/trials", "s"), ("s/trials/0001/checkpoints/x", "s/trials/0001"),
                         ("s/repeats/0", "s/repeats/0"), ("s/other/0", "s")):  # fmt: skip
        mirror = mirror_of(root / inside)
        assert (mirror.name, mirror.path) == (name, root / name)
        assert mirror.address == f"{uri}#{name}" and mirror.uri == join_uri(uri, name)
    assert mirror_of(root / "s/trials/0001")._attempt == "s/attempt", "a trial belongs to its sweep's writer"


def test_names_that_are_taken_in_the_store(uri, elsewhere, tmp_path):
    run = a_run(uri)
    mirror_of(run.path).push()
    elsewhere("there")
    assert taken_names(working_copy(uri)) == {"a"} and taken_names(tmp_path) == set()
    check_store(working_copy(uri), writable=True)
    check_store(tmp_path)
    assert not [name for name in Store(uri).listing() if "probe" in name]
    with pytest.raises(UserError, match="exists already"):
        Run.create(working_copy(uri) / "a", load_config("digits"))


def test_a_place_for_results(uri, tmp_path, read_only, monkeypatch):
    check_place(tmp_path / "new")
    check_place(working_copy(uri) / "a" / "evaluations")
    (tmp_path / "mount").mkdir()
    read_only(tmp_path / "mount")
    with pytest.raises(UserError, match=r"mount.* name a folder for the results with --output DIR"):
        check_place(tmp_path / "mount" / "new")

    def refused(self) -> None:
        raise UserError("the bucket is read-only")

    monkeypatch.setattr(Store, "check_writable", refused)
    with pytest.raises(UserError, match="the bucket is read-only"):
        check_place(working_copy(uri) / "a")
    with pytest.raises(UserError, match="the bucket is read-only"):
        check_store(working_copy(uri), writable=True)
