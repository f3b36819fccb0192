"""Checkpoints of a few weights: what is written is what is read, any damage is found, the best one is always there."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from states import a_state, everything, take_steps, trained
from torch import nn

from statten.config import load_config
from statten.errors import UserError
from statten.storage import checkpoint
from statten.storage.checkpoint import (
    EMA,
    MODEL,
    OPTIMIZER,
    STATE,
    class_names,
    load_newest,
    load_weights,
    prune,
    save,
    save_tensors,
    weights_file,
)
from statten.storage.run import checkpoints

FILES = (MODEL, OPTIMIZER, STATE)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd", "lion"])
@pytest.mark.parametrize("ema", [False, True])
def test_what_is_written_is_what_is_read(optimizer, ema, tmp_path):
    state = trained(2, 7, optimizer=optimizer, ema=ema)
    state.scaler.scale(torch.ones(()))
    state.scaler.update(16.0)
    path = save(state, tmp_path)
    assert path == tmp_path / "epoch-0002-step-000007" and path.stat().st_mode & 0o777 == 0o755
    assert {file.name for file in path.iterdir()} == {*FILES, *[EMA] * ema}
    other = a_state(optimizer, ema, seed=1)
    assert load_newest(other, tmp_path) == path
    assert everything(other) == everything(state)
    # And goes on in the same bits.
    assert everything(take_steps(other)) == everything(take_steps(state))


def test_the_model_by_which_training_is_judged():
    state = a_state(ema=True)
    assert state.eval_model is state.ema.module and a_state().eval_model is not None
    state.ema = None
    assert state.eval_model is state.model and state.device == torch.device("cpu")


def test_the_newest_is_taken_and_of_an_empty_folder_none(tmp_path):
    assert load_newest(a_state(), tmp_path) is None
    for epoch, step in ((1, 0), (2, 0), (2, 3), (10, 0)):
        save(trained(epoch, step), tmp_path)
    (tmp_path / "epoch-0011-step-1").mkdir()  # no name of ours
    state = a_state()
    assert load_newest(state, tmp_path).name == "epoch-0010" and state.epoch == 10
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-0001", "epoch-0002", "epoch-0002-step-000003", "epoch-0010"]


def test_one_that_is_there_stays_and_a_damaged_one_is_written_again(tmp_path):
    path = save(trained(), tmp_path)
    before = (path / STATE).stat().st_ino
    assert save(trained(), tmp_path) == path and (path / STATE).stat().st_ino == before
    (path / MODEL).write_bytes(b"cut off")
    assert save(trained(), tmp_path) == path and load_newest(a_state(), tmp_path) == path
    with pytest.raises(FileNotFoundError):
        save(trained(), tmp_path / "storage that is away" / "checkpoints")
    assert save(trained(), tmp_path / "checkpoints").parent.name == "checkpoints", "the folder itself is made"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two epochs; the second is damaged by each test, and put back."""
    folder = tmp_path_factory.mktemp("two")
    for epoch in (1, 2):
        save(trained(epoch, ema=True), folder)
    return folder


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_found_and_the_checkpoint_before_counts(two, data):
    path = two / "epoch-0002" / data.draw(st.sampled_from([*FILES, EMA]))
    sound = path.read_bytes()
    kind = data.draw(st.sampled_from(["a flipped bit", "cut off", "gone"]))
    place = data.draw(st.integers(0, len(sound) - 1))
    try:
        if kind == "gone":
            path.unlink()
        elif kind == "cut off":
            path.write_bytes(sound[:place])
        else:
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << data.draw(st.integers(0, 7))]) + sound[place + 1 :])
        state = a_state(ema=True)
        assert load_newest(state, two).name == "epoch-0001" and state.epoch == 1, f"{kind} at {place} went unnoticed"
        with pytest.raises(UserError, match=r"epoch-0002: not a usable checkpoint: "):
            weights_file(two / "epoch-0002")
    finally:
        path.write_bytes(sound)


def test_what_is_wrong_is_said(two, tmp_path, caplog):
    folder = shutil.copytree(two, tmp_path / "copy")
    path = folder / "epoch-0002"
    for change, words in (
        (lambda: (path / EMA).unlink(), "ema.safetensors is missing"),
        (lambda: (path / EMA).write_bytes(b""), "ema.safetensors does not match its digest"),
        (lambda: (path / STATE).write_text("{"), "state.json cannot be read"),
        (lambda: (path / STATE).write_text('{"sha256": {}}'), "state.json is missing or incomplete"),
        (lambda: (path / STATE).unlink(), "state.json is missing or incomplete"),
    ):
        change()
        with pytest.raises(UserError) as caught:
            weights_file(path)
        assert str(caught.value) == f"{path}: not a usable checkpoint: {words}"
    with caplog.at_level("WARNING", "statten"):
        load_newest(a_state(ema=True), folder)
    assert f"{path} is damaged (state.json is missing or incomplete); falling back to the checkpoint before it" in caplog.text
    (folder / "epoch-0001" / MODEL).unlink()
    with pytest.raises(UserError, match="all checkpoints are damaged; restore one"):
        load_newest(a_state(ema=True), folder)


def test_of_a_version_before_the_state_had_no_digest_of_its_own(two, tmp_path):
    path = shutil.copytree(two / "epoch-0001", tmp_path / "epoch-0001")
    document = json.loads((path / STATE).read_text())
    for missing in ("digest", "classes", "config"):
        del document[missing]
    (path / STATE).write_text(json.dumps(document))
    assert load_newest(a_state(ema=True), tmp_path) == path and class_names(path) == []


def test_what_does_not_fit_is_no_damage(two, tmp_path):
    wider = a_state(ema=True)
    wider.model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4))
    with pytest.raises(UserError, match=r"epoch-0002: does not fit config.yaml; was that edited since\? Error"):
        load_newest(wider, two)
    save(trained(), tmp_path)
    with pytest.raises(UserError, match=r"epoch-0001: does not fit config.yaml; was that edited since\? .*ema.safetensors"):
        load_newest(a_state(ema=True), tmp_path)


def test_running_out_of_memory_is_not_taken_for_another_config(two, monkeypatch):
    def none_left(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoint, "_load", none_left)
    with pytest.raises(torch.OutOfMemoryError):
        load_newest(a_state(ema=True), two)


def test_weights_are_the_average_where_it_is_wanted_and_there(two, tmp_path):
    path = two / "epoch-0002"
    assert weights_file(path) == weights_file(path, averaged=True) == path / EMA
    assert weights_file(path, averaged=False) == path / MODEL
    without = save(trained(), tmp_path)
    assert weights_file(without) == weights_file(without, averaged=False) == without / MODEL
    for averaged, name in ((True, EMA), (False, MODEL)):
        found, there = load_weights(path, averaged=averaged), load_file(path / name)
        assert found.keys() == there.keys() and all(torch.equal(found[key], there[key]) for key in there)
    assert torch.equal(load_weights(path)["0.weight"], load_file(path / MODEL)["0.weight"]), "the trained ones, unless asked"
    assert not torch.equal(load_weights(path)["0.weight"], load_weights(path, averaged=True)["0.weight"])


def test_files_of_weights(tmp_path):
    save_file({"module.0.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert list(load_weights(tmp_path / "a.safetensors")) == ["0.weight"]
    with pytest.raises(UserError, match=r"none.safetensors: no such file"):
        load_weights(tmp_path / "none.safetensors")
    for content, words in ((b"PK\x03\x04 zip", "it is .*zip"), (b"\x10" + bytes(20), "(?!it is|None).*")):
        (tmp_path / "b.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=rf"b\.safetensors: not a safetensors file that can be read: {words}"):
            load_weights(tmp_path / "b.safetensors")


def test_names_of_classes_and_the_config_are_kept(tmp_path):
    config = load_config("digits")
    path = save(trained(), tmp_path, config, ("cat", "dog"))
    assert class_names(path) == ["cat", "dog"] and class_names(tmp_path / "none") == []
    document = json.loads((path / STATE).read_text())
    assert document["config"] == config.model_dump(mode="json", include={"data", "model", "train"})
    assert json.loads((save(trained(2), tmp_path) / STATE).read_text())["config"] is None


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    save_tensors({"a": torch.arange(6.0).view(2, 3).t()}, tmp_path / "a", {"about": "it"})
    assert torch.equal(load_file(tmp_path / "a")["a"], torch.arange(6.0).view(2, 3).t())
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"about": "it"}
    with pytest.raises(OSError) as caught:
        save_tensors({"a": torch.ones(1)}, tmp_path / "none" / "a")
    number = caught.value.errno
    assert caught.value.filename == str(tmp_path / "none" / "a") and caught.value.strerror == os.strerror(number)
    assert number == 2


class Counting(torch.optim.SGD):
    """An optimizer that keeps numbers too, under names with a dot."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                of = self.state[parameter]
                of["times.done"], of["sum.of.squares"] = of.get("times.done", 0) + 1, parameter.detach().square()
        return super().step(closure)


def test_an_optimizer_may_keep_numbers_under_any_name(tmp_path):
    states = []
    for seed in (0, 1):
        state = a_state(seed=seed)
        state.optimizer = Counting(state.model.parameters(), lr=0.1, momentum=0.9)
        states.append(state)
    save(take_steps(states[0], 3), tmp_path)
    load_newest(states[1], tmp_path)
    first = next(iter(states[1].optimizer.state.values()))
    assert first["times.done"] == 3 and type(first["times.done"]) is int and "sum.of.squares" in first
    assert everything(states[1]) == everything(states[0])


def test_what_cannot_be_pruned_stays_and_stops_nobody(tmp_path):
    for name in ("epoch-0001", "epoch-0002", "epoch-0003"):
        (tmp_path / name).mkdir()
    (tmp_path / "epoch-0000-step-000001").write_text("no folder: it cannot be removed as one")
    prune(tmp_path, 1, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0000-step-000001", "epoch-0003"]


@settings(max_examples=60, deadline=None)
@given(moments=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=9), keep=st.integers(1, 4))
def test_the_best_and_the_newest_are_always_there(moments, keep):
    """Epochs, and checkpoints inside them, with a top-1 that decides which epoch is the best."""
    with tempfile.TemporaryDirectory() as name:
        folder, written, epoch, best = Path(name), [], 0, (-1, 0)
        for is_epoch, top1 in moments:
            epoch += is_epoch
            path = folder / (f"epoch-{epoch:04d}" if is_epoch else f"epoch-{epoch:04d}-step-{len(written) + 1:06d}")
            path.mkdir()
            written.append(path.name)
            if is_epoch and top1 > best[0]:
                best = top1, epoch
            prune(folder, keep, best[1] or None)
            left = {path.name for path in folder.iterdir()}
            newest = set(sorted(written)[-keep:])
            assert newest <= left, f"{newest - left} of the {keep} newest were pruned"
            assert not best[1] or f"epoch-{best[1]:04d}" in left, "the checkpoint of the best epoch was pruned"
            assert left <= newest | {f"epoch-{best[1]:04d}"}, "an older one was left"
