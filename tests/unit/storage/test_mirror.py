"""Working copies and their mirror in servers of S3 and of Google's storage: what is sent and brought, and who may write."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import object_store
import pytest
from object_store import finish_epoch, serving, serving_google

from statten import files
from statten.config import load_config
from statten.errors import Failed, Superseded, UserError
from statten.storage import mirror as mirrors
from statten.storage import store as stores
from statten.storage.mirror import Mirror, Sender, mirror_of, work
from statten.storage.run import Run, default_storage, free_name, locate, written
from statten.storage.store import Store, working_copy

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture(scope="module", params=[serving, serving_google], ids=["s3", "gs"])
def server(request):
    with request.param() as server:
        yield server


def a_run(uri: str, epochs: int = 0) -> Run:
    run = Run.create(working_copy(uri) / "a", load_config("digits"))
    for epoch in range(1, epochs + 1):
        finish_epoch(run.path, epoch)
    return run


def epochs(run: Run) -> list[int]:
    return [int(row["epoch"]) for row in run.metrics()]


def kept(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").glob("*"))


# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_in_copy_and_store_and_on_another_machine(uri, elsewhere):
    run = a_run(uri)
    with run.writing() as attempt:
        sender = Sender(mirror_of(run.path), attempt)
        for epoch in (1, 2, 3):
            finish_epoch(run.path, epoch)
            sender.start()
            sender.wait()
        (run.path / "progress.json").write_text("{}")
        sender.start()
        sender.wait()
        (run.path / "progress.json").unlink()
        sender.close()
    there = set(Store(uri).listing("a"))
    assert there == {
        "run.json", "config.yaml", "metrics.jsonl", "attempt", ".copy",
        *(f"checkpoints/epoch-000{e}/{f}" for e in (2, 3) for f in FILES),
    }  # fmt: skip

    elsewhere("there")
    other = Run.open(locate("a", working_copy(uri)))
    assert other.path != run.path and other.config == run.config and epochs(other) == [1, 2, 3]
    assert kept(other.path) == [], "what only a table needs is brought for a table"
    assert other.best_checkpoint().name == "epoch-0003" and kept(other.path) == ["epoch-0003"]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (other.best_checkpoint() / name).read_bytes() == (run.best_checkpoint() / name).read_bytes()
    assert Run.open(locate(f"{uri.replace('?', '/a?')}", Path("unused"))).path == other.path, "a URI names a run too"
    assert free_name(working_copy(uri), "a") == "a-001" and Store(uri).names() == ["a"]


def test_a_store_on_this_machine_is_asked_without_a_proxy(uri, monkeypatch):
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    a_run(uri)
    Store(uri).check()


def test_plain_folders_know_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STATTEN_STORAGE", f"file://{tmp_path}/runs")
    assert default_storage() == tmp_path / "runs" and mirror_of(tmp_path / "runs" / "a") is None
    run = Run.create(tmp_path / "runs" / "a", load_config("digits"))
    assert run.address == str(run.path) == run.where and Run.at(run.address, "x").path == run.path


def test_the_copy_that_training_goes_on_in_keeps_what_is_not_sent_yet(uri):
    run = a_run(uri, epochs=1)
    with run.writing() as attempt:
        finish_epoch(run.path, 2)
        (run.path / "result.json").write_text('{"state": "failed"}')
        run.publish(attempt)
        finish_epoch(run.path, 3)  # the machine goes down before this one is sent
        (run.path / "result.json").unlink()
        mirror_of(run.path).pull(work)
        assert epochs(run) == [1, 2, 3] and kept(run.path) == ["epoch-0002", "epoch-0003"]
        assert run.state == "unfinished", "what was deleted here does not come back"
        run.publish(attempt)
        assert "result.json" not in Store(uri).listing("a")


def test_an_overtaken_copy_agrees_with_the_store(uri, elsewhere, caplog):
    run = a_run(uri, epochs=2)
    with run.writing():
        pass
    finish_epoch(run.path, 3, keep=3)
    run.path.joinpath("checkpoints/epoch-0003/model.safetensors").write_bytes(b"another third epoch")

    elsewhere("there")
    other = Run.open(locate("a", working_copy(uri)))
    with other.writing() as attempt:
        Run.at(other.address, attempt, writes=True)
        assert kept(other.path) == ["epoch-0001", "epoch-0002"]
        finish_epoch(other.path, 3)
        mirror_of(other.path).push(attempt, whole=True)

    elsewhere("here")
    locate("a", working_copy(uri))
    assert epochs(run) == [1, 2, 3] and kept(run.path) == ["epoch-0002"]
    assert "training went on elsewhere, without this checkpoints/epoch-0003" in caplog.text
    with run.writing() as attempt:
        Run.at(run.address, attempt, writes=True)
        assert kept(run.path) == ["epoch-0002", "epoch-0003"]
    assert (run.path / "checkpoints/epoch-0003/model.safetensors").stat().st_size == 200_000


def test_a_damaged_checkpoint_is_left_in_the_store_and_replaced_by_the_next(uri, elsewhere, caplog):
    run = a_run(uri, epochs=2)
    with run.writing():
        pass
    name = "a/checkpoints/epoch-0002/model.safetensors"
    content = bytearray(Store(uri).read(name))
    content[1000] ^= 1
    Store(uri).write(name, bytes(content))

    elsewhere("there")
    other = Run.open(locate("a", working_copy(uri)))
    with other.writing() as attempt:
        Run.at(other.address, attempt, writes=True)
        assert kept(other.path) == ["epoch-0001"] and "epoch-0002 is damaged in the store" in caplog.text
        (other.path / "metrics.jsonl").write_text((other.path / "metrics.jsonl").read_text().splitlines()[0] + "\n")
        finish_epoch(other.path, 2)
        mirror_of(other.path).push(attempt, whole=True)
    elsewhere("third")
    assert Run.open(locate("a", working_copy(uri))).best_checkpoint().name == "epoch-0002"


# ---------------------------------------------------------------------------------------------------------------------
# Senders that die.


def as_a_reader_sees_it(uri: str, folder: Path) -> int:
    """The newest finished epoch; what speaks of an epoch must not be there before its checkpoint is."""
    store = Store(uri)
    for marker in [name for name in store.listing("a") if name.endswith("/state.json")]:
        for file, digest in json.loads(store.read(f"a/{marker}"))["sha256"].items():
            content = store.read(f"a/{marker.removesuffix('state.json')}{file}") or b""
            assert hashlib.sha256(content).hexdigest() == digest, f"{marker} was sent before the {file} that it speaks of"
    root = folder / "storage"
    shutil.rmtree(root, ignore_errors=True)
    run = Run(root / "a")
    Mirror(Store(uri), "a", run.path).pull(work)
    found = kept(run.path)
    for name in found:
        saved = json.loads((run.path / "checkpoints" / name / "state.json").read_text())
        for file, digest in saved["sha256"].items():
            assert files.sha256(run.path / "checkpoints" / name / file) == digest, f"{name}/{file}"
    newest = max(int(name[-4:]) for name in found)
    assert newest >= max(epochs(run)), "metrics of an epoch without its checkpoint"
    assert max(epochs(run)) >= (run.result or {}).get("epochs", 0), "result.json was sent before the metrics that it sums up"
    return newest


def test_a_sender_killed_anywhere_leaves_a_whole_run_and_the_next_one_goes_on(uri, tmp_path):
    """kill -9 at every object of one epoch's push in turn, each time with a random part of it sent."""
    run, rng, newest, died = a_run(uri, epochs=2), random.Random(0), 2, 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with run.writing() as attempt:
        for moment in range(20):
            finish_epoch(run.path, newest + 1)
            (run.path / "result.json").write_text(json.dumps({"epochs": newest + 1}))
            command = [sys.executable, object_store.__file__, str(run.path), attempt, str(moment), str(rng.random())]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            assert done.returncode in (0, -9), done.stderr
            died += done.returncode == -9
            seen = as_a_reader_sees_it(uri, tmp_path)
            assert seen in (newest, newest + 1)
            if done.returncode == 0:
                assert seen == newest + 1 == max(epochs(run))
                break
            mirror_of(run.path).push(attempt, whole=True)
            newest += 1
            assert as_a_reader_sees_it(uri, tmp_path) == newest
    assert died == 8, "three files, metrics, the result, and a checkpoint's three files deleted"


def test_a_run_is_in_the_store_with_all_that_it_is_or_not_yet(uri, monkeypatch):
    """A first push that ends at any object in turn."""
    run, put = a_run(uri, epochs=1), Store.put
    all_of_it = {"config.yaml", "metrics.jsonl", *(f"checkpoints/epoch-0001/{name}" for name in FILES)}
    for moment in range(len(all_of_it) + 1):
        sent = []

        def put_some(self, path, name, sent=sent, moment=moment):
            if len(sent) == moment:
                raise OSError("the network is gone")
            sent.append(name)
            put(self, path, name)

        monkeypatch.setattr(Store, "put", put_some)
        with pytest.raises(OSError, match="the network is gone"):
            mirror_of(run.path).push()
        there = set(Store(uri).listing("a"))
        assert "run.json" not in there, f"there is a run, but without {sorted(all_of_it - there)}"
        (run.path / ".mirror.json").unlink(missing_ok=True)
    monkeypatch.setattr(Store, "put", put)
    mirror_of(run.path).push()
    assert all_of_it < set(Store(uri).listing("a"))


def test_a_server_that_is_down_for_some_seconds_is_waited_for(uri, server, caplog):
    run = a_run(uri, epochs=1)
    with run.writing() as attempt:
        finish_epoch(run.path, 2)
        sender = Sender(mirror_of(run.path, patience=60), attempt)
        server.stop()
        sender.start()
        while not (said := [r.getMessage() for r in caplog.records if "does not answer" in r.getMessage()]):
            time.sleep(0.05)
        server.start()
        sender.wait()
        assert len(said) == 1 and re.search("[Cc]ould not connect", said[0])
        sender.close()
    assert "checkpoints/epoch-0002/state.json" in Store(uri).listing("a")


def test_a_store_that_stays_away_is_an_error_with_a_sentence(uri, server):
    run = a_run(uri, epochs=1)
    attempt = "of-a-test"
    Store(uri).write("a/attempt", json.dumps({"attempt": attempt}).encode())
    sender = Sender(mirror_of(run.path), attempt)
    server.stop()
    try:
        with pytest.raises(Failed, match=r"could not be written: .*; what is not there yet lies in .*/a, and goes there when"):
            sender.close()
    finally:
        server.start()


# ---------------------------------------------------------------------------------------------------------------------
# One writer.


def test_a_second_writer_is_refused_and_told_who_the_first_is(uri, elsewhere):
    run = a_run(uri)
    with run.writing():
        with pytest.raises(UserError, match=r"another process is writing this run; .*: process \d+ on .*, last seen \d+ s ago"):
            run.writing().__enter__()
        elsewhere("there")
        with pytest.raises(UserError, match=r"(s3|gs)://.*/a\?.*: another process is writing this run; .*: process"):
            Run(locate("a", working_copy(uri))).writing().__enter__()
        with pytest.raises(UserError, match="exists already"):
            Run.create(working_copy(uri) / "a", load_config("digits"))
        assert written(locate("a", working_copy(uri))), "the store tells that another machine is at work"
    with Run(locate("a", working_copy(uri))).writing():
        pass
    assert not written(locate("a", working_copy(uri)))


def test_a_dead_writers_place_is_taken_and_its_workers_stop(uri, monkeypatch):
    run = a_run(uri, epochs=1)
    with run.writing():
        pass
    lease = {"host": "far-away", "pid": 1, "time": time.time(), "attempt": "old"}
    Store(uri).write("a/attempt", json.dumps(lease).encode())
    with pytest.raises(UserError, match="process 1 on far-away, last seen"):
        run.writing().__enter__()
    monkeypatch.setattr(files, "RENEW", 0.2)
    time.sleep(1.2)  # the store tells times to the second
    finish_epoch(run.path, 2)
    with run.writing() as attempt:
        finish_epoch(run.path, 3)
        with pytest.raises(Superseded, match="a newer attempt writes this run"):
            mirror_of(run.path).push("old", whole=True)
        assert "checkpoints/epoch-0002/state.json" in Store(uri).listing("a"), "the new writer's, which sends what was left"
        time.sleep(1)
        assert json.loads(Store(uri).read("a/attempt"))["time"] > time.time() - 0.9, "renewed"
        assert mirror_of(run.path)._lease()["attempt"] == attempt
    # On this machine a process that is gone is known to be gone: nobody waits for its lease.
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(files, "RENEW", 10.0)
    Store(uri).write("a/attempt", json.dumps({**files.writer(), "pid": gone.pid, "attempt": "old"}).encode())
    with run.writing():
        pass


def test_records_of_a_writer_are_equally_long(uri):
    """A reader of S3 asks for an object's length, then for so many bytes of what is there by then."""
    run, lengths = a_run(uri), []
    for _ in range(2):
        with run.writing():
            lengths.append(Store(uri).listing("a")["attempt"][0])
        lengths.append(Store(uri).listing("a")["attempt"][0])
    said = "who reads while it is renewed finds half a record, and takes the writer for overtaken"
    assert len(set(lengths)) == 1, f"records of {lengths} bytes: {said}"


def test_two_who_begin_at_once_do_not_both_write(uri, monkeypatch):
    run = a_run(uri)
    mirror = mirror_of(run.path)
    monkeypatch.setattr(mirrors, "SETTLE", 0.5)
    outcomes = []

    def enter(attempt: str) -> None:
        try:
            with mirror_of(run.path).leased(attempt, "this run"):
                outcomes.append(attempt)
                time.sleep(1)
        except UserError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=enter, args=(name,)) for name in ("one", "two")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted("another process" in outcome for outcome in outcomes) == [False, True], outcomes
    mirror.check_attempt(next(outcome for outcome in outcomes if outcome in ("one", "two")))


def test_a_lock_that_machines_do_not_share_is_backed_by_its_record(tmp_path, monkeypatch):
    """NFS mounts may keep flock to one machine: the record of a writer on another one counts while it is renewed."""
    record = {"host": "far-away", "pid": 1, "time": time.time() - 12}
    (tmp_path / ".lock").write_text(json.dumps(record).ljust(200))
    with pytest.raises(UserError, match=r"writing it; wait for it or stop it: process 1 on far-away, last seen 12 s ago"):
        files.exclusive(tmp_path).__enter__()
    monkeypatch.setattr(files, "RENEW", 0.5)
    (tmp_path / ".lock").write_text(json.dumps({**record, "time": time.time() - 31}).ljust(200))
    with files.exclusive(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.parametrize("ahead", [-3000.0, 3000.0])
def test_a_writer_whose_clock_is_wrong_is_seen_at_work(tmp_path, monkeypatch, caplog, ahead):
    monkeypatch.setattr(files, "RENEW", 0.5)

    def renewed() -> None:
        record = {"host": "far-away", "pid": 1, "time": time.time() + ahead}
        (tmp_path / ".lock").write_text(json.dumps(record).ljust(200))

    renewed()
    with files.repeating(renewed, 0.1), pytest.raises(UserError, match="process 1 on far-away"):
        files.exclusive(tmp_path).__enter__()
    assert "whether it is at work" in caplog.text
    with files.exclusive(tmp_path):
        pass  # it is renewed no longer


DAMAGED = [
    '{"host": "x"}', "[1]", "7", '{"host": "x", "pid": 1, "time": null}', '{"host": "x", "pid": 0, "time": NOW}', "\ufeff{",
    '{"host": "x", "pid": 1, "time": NaN}', '{"host": 3, "pid": 1, "time": NOW}', "[" * 9_999, '{"pid": 1e999}',
    '{"host": "x", "pid": 1, "time": 99999999999}', "\x00\udcff",
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_record_that_says_nothing_keeps_nobody_out(tmp_path, text):
    text = text.replace("NOW", str(time.time()))
    (tmp_path / ".lock").write_bytes(text.encode(errors="surrogateescape").ljust(200))
    with files.exclusive(tmp_path):
        pass
    assert (tmp_path / ".lock").read_bytes() == b""


@pytest.mark.parametrize("make", ["symlink", "link", "dangling", "fifo", "folder"])
def test_a_lock_that_leads_elsewhere_is_refused_and_what_is_there_stays(tmp_path, make):
    mine, lock = tmp_path / "mine", tmp_path / ".lock"
    mine.write_text("precious" * 100)
    {"symlink": lambda: lock.symlink_to(mine), "link": lambda: os.link(mine, lock), "fifo": lambda: os.mkfifo(lock),
     "dangling": lambda: lock.symlink_to("none"), "folder": lock.mkdir}[make]()  # fmt: skip
    with pytest.raises(UserError, match=r"\.lock: must be a plain file"):
        files.exclusive(tmp_path).__enter__()
    assert mine.read_text() == "precious" * 100 and not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_has_no_lock(tmp_path, read_only):
    with pytest.raises(UserError, match=r"cannot be written: (Read-only file system|Permission denied)"):
        files.exclusive(read_only(tmp_path)).__enter__()


def test_damaged_records_of_a_store_keep_nobody_out(uri, monkeypatch):
    monkeypatch.setattr(mirrors, "SETTLE", 0.0)
    run = a_run(uri)
    for content in (b"[1]", b'{"host": "x"}', b"\xff\xfe", b"{", b'{"attempt": 7, "host": "x", "pid": 1, "time": null}'):
        Store(uri).write("a/attempt", content)
        with run.writing():
            pass


def test_what_is_damaged_in_a_working_copy_is_named_or_made_anew(uri):
    run = a_run(uri)
    with run.writing():
        pass
    root = working_copy(uri)
    for content in (b"\xff", b"[]", b'{"uri": 3}'):
        (root / ".storage.json").write_bytes(content)
        assert working_copy(uri) == root and json.loads((root / ".storage.json").read_text()) == {"uri": Store(uri).uri}
        (root / ".storage.json").write_bytes(content)
        with pytest.raises(UserError, match=r"\.storage\.json"):
            run.refresh()
        working_copy(uri)
    for content in (b"[]", b'{"copy": "x"}', b'{"copy": "x", "files": {"config.yaml": 3}}', b"\xff"):
        (run.path / ".mirror.json").write_bytes(content)
        with pytest.raises(UserError, match=r"\.mirror\.json"):
            run.refresh()


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("s3://key:hidden@bucket/runs", "credentials have no place in a URI"),
        ("s3://key:hid/den@bucket/runs", "credentials have no place in a URI"),
        ("s3://hidden@bucket/runs", "credentials have no place in a URI"),
        ("abfs://c@a.dfs.core.windows.net/p?tenant_id=a&client_secret=hidden", "AZURE_CLIENT_SECRET"),
        ("abfs://c@a.dfs.core.windows.net/p?sv=1&sig=hidden", "credentials have no place in a URI"),
        ("s3://bucket/runs?secret_key=hidden", "credentials have no place in a URI"),
        ("nope://bucket/runs", "cannot be opened: Unrecognized filesystem type"),
        ("s3://bucket/runs?bogus=1", "cannot be opened: Unexpected query parameter"),
        ("gs://bucket/runs?bogus=1", "cannot be opened: Unexpected query parameter"),
    ],
)
def test_uris_that_cannot_be(text, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        working_copy(text)
    assert "hidden" not in str(error.value) and "hid/den" not in str(error.value)


def test_wrong_bucket_and_wrong_keys(uri, server, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"--storage: (s3|gs)://.*nope/.*: there is no bucket nope; make it first"):
        mirrors.check_store(working_copy(server.uri(bucket="nope")))
    if isinstance(server, object_store.Google):
        return  # asks for no keys
    ask_for_keys(server, 0)
    try:
        with pytest.raises(UserError, match=r"INVALID_ACCESS_KEY_ID.*|ACCESS_DENIED.*; look at the credentials") as error:
            mirrors.check_store(working_copy(uri))
        assert not any(value in str(error.value) for name, value in os.environ.items() if name.startswith("AWS_SECRET"))
    finally:
        ask_for_keys(server, "inf")
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert not any(secret in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_without_credentials_google_is_not_asked_for_a_quarter_of_an_hour(tmp_path, monkeypatch):
    monkeypatch.setenv("STATTEN_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")  # nothing is asked beyond loopback
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setattr(stores, "GOOGLE_SECONDS", 1)
    with pytest.raises(UserError, match=r"gs://bucket/runs: no credentials of Google Cloud are found; make some with: gcloud"):
        mirrors.check_store(working_copy("gs://bucket/runs"))


def ask_for_keys(server, after) -> None:
    """Make the server check keys after so many more requests."""
    import urllib.request

    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{server.endpoint}/moto-api/reset-auth", str(after).encode(), headers, method="POST")
    urllib.request.urlopen(request).close()
