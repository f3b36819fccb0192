"""The objects of a storage, where the storage is a folder: what is listed, brought whole or not at all, and asked for again."""

import errno
import logging
import os
import stat
import time
from types import SimpleNamespace

import pytest

from statten.errors import UserError
from statten.storage import store as module
from statten.storage.store import Store, explain, is_uri, join_uri, split_uri, working_copy


@pytest.fixture
def store(tmp_path):
    """A store with two runs, and what is none."""
    for name in ("a/config.yaml", "a/checkpoints/epoch-0001/state.json", "b/run.json", ".hidden/x", "file"):
        (tmp_path / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / name).write_text(name)
    return Store(f"file://{tmp_path}/store")


def test_objects_by_their_names(store, tmp_path):
    assert sorted(store.names()) == ["a", "b", "file"], "what begins with a dot is none"
    listed = store.listing("a")
    assert sorted(listed) == ["checkpoints/epoch-0001/state.json", "config.yaml"]
    found = (tmp_path / "store" / "a" / "config.yaml").stat()
    assert listed["config.yaml"] == [found.st_size, found.st_mtime_ns]
    assert set(store.listing()) >= {"a/config.yaml", "b/run.json", "file"} and store.listing("none") == {}
    assert Store(f"file://{tmp_path}/none").names() == [] and Store(f"file://{tmp_path}/none").listing() == {}


def test_an_object_is_read_written_and_deleted(store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    assert store.read("a/none") is None and store.read("a/config.yaml") == b"a/config.yaml"
    store.write("a/new", b"twelve bytes")
    assert store.read("a/new") == b"twelve bytes" and abs(store.seconds_since("a/new")) < 60
    os.utime(tmp_path / "store" / "a" / "new", (time.time() - 1000, time.time() - 1000))
    assert store.seconds_since("a/new") == pytest.approx(1000, abs=60)
    (tmp_path / "sent").write_bytes(b"more than a chunk")
    store.put(tmp_path / "sent", "a/sent")
    assert store.read("a/sent") == b"more than a chunk"
    store.delete("a/sent")
    store.delete("a/sent")
    assert store.read("a/sent") is None
    store.check_writable()
    assert not [name for name in store.listing() if "probe" in name]


def test_an_object_is_brought_whole_or_not_at_all(store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    target = tmp_path / "new" / "folder" / "config.yaml"
    store.get("a/config.yaml", target)
    assert target.read_text() == "a/config.yaml" and stat.S_IMODE(target.stat().st_mode) == 0o644
    with pytest.raises(FileNotFoundError):
        store.get("a/none", target)
    assert target.read_text() == "a/config.yaml" and os.listdir(target.parent) == ["config.yaml"], "nothing is left aside"
    # What the first try had brought of it is not in the way of the next.
    copy, tries = Store._copy, []

    def cut_off(self, name, sink) -> None:
        tries.append(1)
        if len(tries) == 1:
            sink.write(b"half, and longer than the whole of it")
            raise OSError("the network is gone")
        copy(self, name, sink)

    monkeypatch.setattr(Store, "_copy", cut_off)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    store.patience = 60.0
    store.get("b/run.json", target)
    assert target.read_text() == "b/run.json" and len(tries) == 2


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass while somebody sleeps."""
    passed = SimpleNamespace(now=0.0, pauses=[])

    def sleep(seconds: float) -> None:
        passed.pauses.append(seconds)
        passed.now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: passed.now)
    monkeypatch.setattr(time, "sleep", sleep)
    return passed


def away() -> None:
    raise OSError("could not connect")


@pytest.mark.parametrize(
    ("patience", "pauses"), [(0.0, []), (3.0, [1.0, 2.0]), (100.0, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0])]
)
def test_a_store_that_does_not_answer_is_asked_again_with_pauses_that_grow(patience, pauses, store, clock, caplog):
    store.patience = patience
    with caplog.at_level(logging.WARNING, "statten"), pytest.raises(OSError, match="could not connect"):
        store._patiently(away)
    assert clock.pauses == pauses
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{store.uri} does not answer (could not connect); trying again"] * bool(pauses), "once"


@pytest.mark.parametrize(
    "text", ["ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "signature", "ExpiredToken", "401 UNAUTHENTICATED"]
)
def test_an_answer_that_asking_again_does_not_change_is_one(text, store, clock):
    store.patience = 100.0

    def refused() -> None:
        raise OSError(f"AWS Error {text} during x")

    def no_room() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for action in (refused, no_room):
        with pytest.raises(OSError):
            store._patiently(action)
    assert clock.pauses == [] and store._patiently(lambda: 3) == 3


def test_what_a_store_says_is_one_sentence_with_its_name(store):
    with pytest.raises(UserError, match=rf"--storage: {store.uri}: could not connect$"), store.speaking():
        away()


# --- URIs


def test_a_working_copy_belongs_to_one_uri(tmp_path, monkeypatch):
    monkeypatch.setenv("STATTEN_CACHE", str(tmp_path / "cache"))
    assert is_uri("s3://bucket") and not is_uri("bucket/s3") and working_copy("~/runs").is_absolute()
    one, other = working_copy("s3://bucket/runs?region=us-east-1"), working_copy("s3://bucket/other?region=us-east-1")
    assert one != other and one == working_copy("s3://bucket/runs/?region=us-east-1") and one.parent == tmp_path / "cache"
    assert stat.S_IMODE(one.stat().st_mode) == 0o700 and len(one.name) == 16
    assert (one / ".storage.json").read_text().count("s3://bucket/runs?region=us-east-1") == 1
    before = (one / ".storage.json").stat().st_mtime_ns
    working_copy("s3://bucket/runs?region=us-east-1")
    assert (one / ".storage.json").stat().st_mtime_ns == before
    (one / ".storage.json").write_text("{damaged")
    assert working_copy("s3://bucket/runs?region=us-east-1") == one and "s3://" in (one / ".storage.json").read_text()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STATTEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/.* cannot be written: .*; name a folder in \$STATTEN_CACHE"):
        working_copy("s3://bucket/runs?region=us-east-1")


@pytest.mark.parametrize("known", ["", "elsewhere.example", "elsewhere.example,127.0.0.1"])
def test_no_proxy_is_asked_for_what_is_on_this_machine(known, monkeypatch):
    monkeypatch.setenv("no_proxy", known)
    module._reach_directly("storage.example:9000")
    assert os.environ["no_proxy"] == known
    module._reach_directly("127.0.0.1:9000")
    module._reach_directly("127.0.0.1:9000")
    assert os.environ["no_proxy"].split(",") == [*["elsewhere.example"] * bool(known), "127.0.0.1"]


@pytest.mark.parametrize(
    ("uri", "storage", "name"),
    [
        ("s3://bucket/runs/a", "s3://bucket/runs", "a"),
        ("s3://bucket/runs/a/?x=1&y=/z", "s3://bucket/runs?x=1&y=/z", "a"),
        ("s3://bucket/a", "s3://bucket", "a"),
    ],
)
def test_the_uri_of_a_run(uri, storage, name):
    assert split_uri(uri) == (storage, name) and join_uri(storage, name) == uri.replace("/?", "?")
    assert join_uri(f"{storage.partition('?')[0]}/", "") == storage.partition("?")[0]


def test_what_a_store_says_in_a_sentence():
    assert explain(OSError("When listing: AWS Error ACCESS_DENIED (Request ID: 1) no. ; Details: x\nmore")).startswith(
        "When listing: AWS Error ACCESS_DENIED"
    )
    assert "look at the credentials in the environment" in explain(OSError("AWS Error ACCESS_DENIED during HeadBucket"))
    assert explain(OSError("connection refused.  ")) == "connection refused" and explain(OSError()) == "OSError"
    google = (
        "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of could not connect. error_info=x)"
    )
    assert explain(OSError(google)) == "could not connect"
    token = "google::cloud::Status(UNKNOWN: x, with a last message of Could not create a OAuth2 access token. error_info=)"
    assert explain(OSError(token)) == (
        "no credentials of Google Cloud are found; make some with: gcloud auth application-default login"
    )
