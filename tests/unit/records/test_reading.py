"""Files of ours that are read back: what a kind allows is a document, anything else one sentence, and nothing takes long."""

import json
import os
import time
from typing import Any, get_args

import pytest

from statten.errors import UserError, nearest, shown
from statten.records import data, measurements, runs, stores
from statten.records.reading import DEEPEST, check, parse, read

ROW = {"epoch": 3, "val/top1": 71.5, "val/loss": 0.5}
SHARD = {"name": "a.tar", "bytes": 9, "offsets": [1], "sizes": [2], "labels": [0]}
LEDGER_ROW = {
    "layer": "head", "kind": "linear", "unit": "SOPs", "rate": 0.5, "inside": 1.0, "flops": 10, "timesteps": 2, "bytes": 3,
    "operations": 10.0, "formula": "", "pj": 9.0, "memory_pj": 0.0,
}  # fmt: skip
INHERITED = {"number": 3, "point": {"model.depth": 2}, "metrics": {"val/loss": 0.5}, "checkpoint": "epoch-0003", "seconds": 1}
PROXY = {"formula": "log T + 2 log D", "tau": 0.5, "front": [3], "hypervolume": 0.5}
SOUND: list[tuple[Any, Any]] = [
    (runs.Marker, {"kind": "run", "created": "2026-01-01T00:00:00Z", "origin": {"sweep": "s", "trial": 3, "point": {"a": 1}}}),
    (runs.Row, ROW), (runs.Best, {**ROW, "checkpoint": "checkpoints/epoch-0003"}),
    (runs.Result, {"state": "finished", "best": ROW}),
    (runs.Progress, {"epoch": 1, "epochs": 2, "step": 3, "steps": 4, "time": 1.7e9}),
    (runs.Seal, {"sha256": {"model.safetensors": "ab" * 32}, "epoch": 3}), (runs.Sources, {"7": "/runs/s/trials/0007"}),
    (runs.Inherited, INHERITED), (runs.Front, {"objectives": {"val/loss": "min"}, "evaluated": 1, "front": [INHERITED],
                                               "hypervolume": None, "proxy": PROXY}),
    (runs.LoggedAs, {"mlflow": "ab", "wandb": "cd"}),
    (stores.Storage, {"uri": "s3://bucket/runs"}), (stores.Agreed, {"copy": "ab", "files": {"a/b": [[1, 2], None]}}),
    (stores.Writer, {"host": "h", "pid": 7, "time": 1.7e9, "attempt": "ab"}),
    (data.Splits, {"train": [0], "test": {"count": 1, "bits": "eJw="}, "samples": 2, "labels": "ab"}),
    (data.Index, {"version": 1, "classes": ["a"], "shards": [SHARD]}), (measurements.LedgerRow, LEDGER_ROW),
    (measurements.Conventions, {"padding": "skipped", "memory_pj_per_byte": None}),
    (measurements.Cost, {"memory_bytes": 1, "step_seconds": 0.1, "validation_seconds": 0.1, "there_bytes": 2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "document"), SOUND, ids=[str(getattr(kind, "__name__", i)) for i, (kind, _) in enumerate(SOUND)]
)
def test_a_sound_document_is_read_as_it_was_written(kind, document, tmp_path):
    path = tmp_path / "x.json"
    assert read(path, kind) is None
    path.write_text(json.dumps(document))
    assert json.dumps(read(path, kind), sort_keys=True) == json.dumps(document, sort_keys=True)


@pytest.mark.parametrize(
    "kind", [runs.Marker, runs.Result, runs.Row, data.Index, stores.Agreed], ids=["Marker", "Result", "Row", "Index", "Agreed"]
)
def test_a_key_of_another_version_may_be_there(kind):
    document = next(document for other, document in SOUND if other is kind)
    later = {**document, "later": 3}
    assert check(later, kind, "x.json") == later


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        (runs.Result, {"state": "paused"}, "state must be one of 'finished', 'failed' or 'stopped', but got 'paused'"),
        (runs.Result, {"epochs": "3"}, "epochs must be a whole number, but got '3'"),
        (runs.Result, {"epochs": True}, "epochs must be a whole number, but got true"),
        (runs.Result, {"epochs": -1}, "epochs must be at least 0, but got -1"),
        (runs.Result, {"reason": {"a": 1}}, "reason must be text, but got {a: 1}"),
        (runs.Result, {"best": {**ROW, "val/top1": "71"}}, "best must have a number as val/top1, but got {epoch: 3"),
        (runs.Result, {"best": {**ROW, "checkpoint": 3}}, "best must have a folder as checkpoint, but got {"),
        (runs.Result, {"best": {**ROW, "\udcff": "x"}}, "it must have names in UTF-8"),
        (runs.Result, {"best": [ROW]}, "best must be a JSON object, but got [{"),
        (runs.Row, {"epoch": 1.5}, "it must have a whole number as epoch, but got {epoch: 1.5"),
        (runs.Row, {"epoch": 10**400}, "epoch must be below 9.22337e+18, but got 1000"),
        (runs.Row, {"val/loss": "0.5"}, "val/loss must be a number, but got '0.5'"),
        (runs.Marker, {"origin": "s"}, "origin must be a JSON object, but got 's'"),
        (runs.Marker, {"origin": {"point": [1]}}, "origin.point must be a JSON object, but got [1]"),
        (runs.Seal, {"sha256": {"../x": "ab" * 32}}, "sha256.../x must match"),
        (runs.Sources, {"-1": "/x"}, "-1 must match ^[0-9]{1,9}$, but got '-1'"),
        (stores.Agreed, {"files": {"../x": [[], []]}}, "must be a path inside its run, but got '../x'"),
        (stores.Agreed, {"files": {"/x": [[], []]}}, "must be a path inside its run, but got '/x'"),
        (stores.Agreed, {"files": {"x": [[1, 2]]}}, "files.x must hold at least 2, but got [[1, 2]]"),
        (data.Index, {"shards": []}, "shards must hold at least 1, but got []"),
        (data.Index, {"shards": [{**SHARD, "labels": [-1]}]}, "shards.0.labels.0 must be at least 0, but got -1"),
        (data.Index, {"shards": [{**SHARD, "labels": [0.5]}]}, "shards.0.labels.0 must be a whole number, but got 0.5"),
        (data.Index, {"shards": [{**SHARD, "labels": ["0"]}]}, "shards.0.labels.0 must be a whole number, but got '0'"),
        (data.Index, {"shards": [{**SHARD, "sizes": [2**63]}]}, "shards.0.sizes.0 must be below 9.22337e+18"),
        (data.Splits, {"train": "all"}, "train must be a list, but got 'all'"),
        (measurements.LedgerRow, {"rate": "0.5"}, "rate must be a number, but got '0.5'"),
        (measurements.LedgerRow, {"rate": float("nan")}, "rate must be at most 1e+30, but got .nan"),
        (measurements.LedgerRow, {"pj": 10**400}, "pj must be a number, but got 1000"),
        (measurements.Conventions, {"padding": "ignored"}, "padding must be one of 'counted' or 'skipped', but got 'ignored'"),
        (measurements.Conventions, {"colour": "red"}, "colour is not known, but got 'red'"),
        (measurements.Cost, {"memory_bytes": -5}, "memory_bytes must be at least 0"),
    ],
)  # fmt: skip
def test_a_document_of_another_kind_is_refused_in_one_sentence(kind, change, sentence, tmp_path):
    document = {**next(document for other, document in SOUND if other is kind), **change}
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        read(tmp_path / "x.json", kind)
    (said,) = caught.value.problems
    assert said.startswith(f"{tmp_path / 'x.json'}: ") and sentence in said and said.endswith("; it is damaged")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read: Expecting value"), (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        (b"[1]", "must be a JSON object"), (b"[" * 100_000, "nested too deep"), (b'{"a":' * 100_000, "nested too deep"),
        (b"9" * 5000, "cannot be read: Exceeds the"),
        (b'{"origin": ' + b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1) + b"}", f"nested more than {DEEPEST} deep"),
        (b'{"a": 1} 2', "cannot be read: Extra data"),
    ],
)  # fmt: skip
def test_text_that_is_no_document_is_said(content, words):
    with pytest.raises(UserError, match=r"x.json: .*it is damaged") as caught:
        parse(content, runs.Marker, "x.json")
    assert words in str(caught.value)


def test_what_is_no_plain_file_of_a_size_is_not_read(tmp_path):
    path = tmp_path / "run.json"
    os.mkfifo(path)
    with pytest.raises(UserError, match="cannot be read: it is no plain file"):  # and nobody waits for a writer
        read(path, runs.Marker)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="cannot be read: it is no plain file"):
        read(path, runs.Marker)
    path.unlink()
    path.write_text("{}" + " " * 100)
    with pytest.raises(UserError, match="cannot be read: it has more than 50 bytes"):
        read(path, runs.Marker, largest=50)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read(path, runs.Marker)


def test_a_large_document_is_refused_quickly():
    began = time.process_time()
    wide = json.dumps([{"name": "x", "labels": list(range(100_000))}] * 5).encode()
    for kind in (runs.Marker, runs.Result, data.Splits, stores.Agreed):
        with pytest.raises(UserError):
            parse(wide, kind, "x.json")
    assert time.process_time() - began < 2


def test_names_that_are_no_unicode_stay(tmp_path):
    """Class folders may have any bytes as names; JSON holds them as lone surrogates."""
    name = os.fsdecode(b"\xe9mu")
    document = {"version": 1, "classes": [name], "shards": [SHARD]}
    (tmp_path / "index.json").write_text(json.dumps(document))
    assert read(tmp_path / "index.json", data.Index) == document


# --- sentences


def test_a_value_is_shown_in_part_however_large_and_deep_it_is():
    deep: Any = 1
    for _ in range(10_000):
        deep = [deep]
    for value in (list(range(10**6)), {str(i): i for i in range(10**6)}, deep, {"a": ["x" * 10**6]}, (1, (2, 3))):
        began = time.process_time()
        assert len(shown(value)) <= 60 and time.process_time() - began < 1
    assert shown([1, {"a": None}]) == "[1, {a: null}]" and shown((1, 2)) == "[1, 2]"


def test_a_sentence_is_one_line_that_a_terminal_can_show():
    (said,) = UserError("a\nb\x1b[2J\u2028\udcff é").problems
    assert said == "a b\\x1b[2J \\udcff é"
    (said,) = UserError("begin " + "x" * 10_000 + " end").problems
    assert len(said) < 1600 and said.startswith("begin x") and said.endswith("x end") and " ... " in said


def test_of_many_choices_some_are_named():
    assert nearest("zzz", [f"choice{i}" for i in range(200)]).endswith(", choice39 and 160 more")
    assert nearest("z" * 10**6, ["a", "b"]) == "choose from a, b"


def test_every_kind_of_a_ledger_word_is_known():
    """The conventions that a file may name are those that a ledger can be made with."""
    from statten.metrics.energy import Conventions

    kinds = measurements.Conventions.__annotations__
    assert kinds.keys() == Conventions.__annotations__.keys()
    for name in ("first_layer", "padding"):
        assert get_args(kinds[name]) == get_args(Conventions.__annotations__[name])
