"""Whole commands on a run that lies in an object store: train, killed, resumed from the store alone, shown, evaluated."""

import json
import os
import uuid
from pathlib import Path

import object_store
import pytest

from statten.storage.store import Store

SMALL = (
    "--set model.depth=1 --set model.embed_dim=32 --set train.epochs=4 --set train.warmup_epochs=0 "
    "--set scale.neuron_backend=torch"  # nothing to compile
)


@pytest.fixture(scope="module")
def server():
    with object_store.serving() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def another_machine(tmp_path, monkeypatch):
    """Become a machine that has never seen the storage; returns where its working copies will be."""

    def become() -> Path:
        cache = tmp_path / uuid.uuid4().hex
        monkeypatch.setenv("STATTEN_CACHE", str(cache))
        return cache

    become()
    return become


def document(text: str) -> dict:
    return json.loads(text[text.index("{") :])


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_store_alone(statten, done, server, another_machine):
    uri = server.uri()
    store = Store(uri)
    killed = statten("train", "digits", *SMALL.split(), "--name", "a", "--storage", uri)
    killed.wait_until(lambda: "checkpoints/epoch-0002/state.json" in store.listing("a"))
    killed.kill()
    another_machine()
    text = statten("resume", "a", "--storage", uri).finish()
    assert "epoch 4/4" in text and "epoch 1/4" not in text and "epoch 2/4" not in text
    assert f"statten evaluate '{uri.replace('?', '/a?')}'" in text

    another_machine()
    report = document(done("evaluate", "a", "--storage", uri, "--json"))
    assert report["top1"] > 20
    for command, file in (("anytime", "anytime.json"), ("grid", "grid-validation.png")):
        folder = Path(document(done(command, "a", "--storage", uri, "--json"))["folder"]).name
        assert f"a/evaluations/{folder}/{file}" in store.listing()
    cache = another_machine()
    shown = document(done("show", uri.replace("?", "/a?"), "--json"))
    assert [row["epoch"] for row in shown["epochs"]] == [1, 2, 3, 4] and shown["state"] == "finished" and shown["evaluation"]
    assert not list(cache.rglob("*.safetensors")), "nobody asked for weights"

    objects = store.listing()
    assert f"a/evaluations/{Path(report['folder']).name}/report.json" in objects
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert not any(secret.encode() in (store.read(name) or b"") for name in objects if not name.endswith(".safetensors"))
    assert secret not in killed.text + text


def test_mistakes_are_one_sentence_and_nothing_is_written(statten, server, another_machine):
    cache = another_machine()
    nope = statten("train", "digits", "--storage", server.uri(bucket="nope"))
    keys = statten("train", "digits", "--storage", "s3://me:hidden@bucket/runs")
    for command, sentence in ((nope, "there is no bucket nope"), (keys, "credentials have no place in a URI")):
        text = command.finish(code=2, seconds=120)
        assert sentence in text and text.count("\n") == 1 and "hidden" not in text
    assert not list(cache.rglob("run.json"))
