"""What a step costs is measured in a process of its own, once for each shape, and what does not fit is refused."""

import json
from dataclasses import replace

import pytest
import torch

from statten.config import load_config
from statten.errors import Failed, UserError
from statten.search import costs, make_space, plan_sweep
from statten.search.plan import measure_sweep

FIELDS = {
    "model.depth": 1,
    "model.embed_dim": 16,
    "model.num_heads": 1,
    "train.batch_size": 16,
    "scale.neuron_backend": "torch",
}
SPACE = {"model.timesteps": {"choices": [1, 8]}, "model.block_size": {"divisors_of": "model.timesteps"}}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STATTEN_CACHE", str(tmp_path))
    return tmp_path / "costs.json"


@pytest.fixture
def planned():
    config = load_config("digits", {**FIELDS, "search.trials": 4})
    space = make_space(SPACE, config)
    return plan_sweep(config, space, {"CPU": 2.0})


def test_the_extremes_of_a_space_are_measured_once(cache, planned, monkeypatch, capfd):
    found = measure_sweep(planned)
    assert 1.3 * found.smallest.step_seconds < found.largest.step_seconds, "eight timesteps against one"
    assert 50e6 < found.largest.memory_bytes < found.largest.there_bytes
    assert 0 < found.hours[0] < found.hours[1]
    assert "MiB and" in str(found) and "if no trial is stopped early" in str(found)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(costs, "_run", lambda *_: pytest.fail("measured again"))
    assert measure_sweep(planned) == found and len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("text", ["{cut", "[1]", '{"key": {"seconds": 1}}', '{"key": 5}', "\xff"])
def test_what_was_remembered_and_is_damaged_is_measured_again(cache, text):
    cache.write_text(text, encoding="latin-1")
    assert costs._known(cache) == {}


def test_what_only_a_sweep_decides_is_not_measured_anew(cache):
    keys = {
        costs._key(costs._document(load_config("digits", {**FIELDS, **fields})), "cpu", 1)
        for fields in ({}, {"search.trials": 9}, {"train.epochs": 50, "train.warmup_epochs": 3}, {"scale.hang_seconds": 77})
    }
    assert len(keys) == 1
    assert costs._key(costs._document(load_config("digits", {**FIELDS, "train.batch_size": 32})), "cpu", 1) not in keys


def test_a_container_of_another_size_is_measured_anew(monkeypatch):
    """What is there is the container's limit, and what was remembered under another limit does not hold."""
    document, threads, keys = costs._document(load_config("digits", FIELDS)), torch.get_num_threads(), set()
    for there in (2**31, 2**32):
        monkeypatch.setattr(costs, "usable_memory", lambda there=there: there)
        keys.add(costs._key(document, "cpu", 1))
    assert len(keys) == 2 and costs.measure(document, "cpu", threads)["there_bytes"] == 2**32


def test_a_trial_that_does_not_fit_is_refused(cache, planned, monkeypatch):
    found = costs.Cost(2**40, 0.1, 0.1, 2**30)
    monkeypatch.setattr("statten.search.plan.costs", lambda *_: [found, found])
    with pytest.raises(UserError, match=r"the largest trial needs about 1024.0 GiB, and there are 1.0; make the space or"):
        measure_sweep(planned)
    on_gpu = replace(planned, trial=replace(planned.trial, device="cuda"), gpus_per_trial=0.25)
    with pytest.raises(UserError, match=r"1024.0 GiB, and its share of a GPU has 0.2"):
        measure_sweep(on_gpu)


def test_running_out_of_memory_is_told_from_what_cannot_be_measured(cache, monkeypatch):
    def none(*_):
        raise MemoryError("can't allocate memory: you tried to allocate 99 bytes")

    config = load_config("digits", FIELDS)
    monkeypatch.setattr(costs, "measure", none)
    monkeypatch.setattr(costs.concurrent.futures, "ProcessPoolExecutor", lambda *_, **__: _Here())
    with pytest.raises(UserError, match=r"^search: one step of the largest trial runs out of memory: can't allocate"):
        costs.costs([config], "cpu", 1)
    monkeypatch.setattr(costs, "measure", lambda *_: 1 / 0)
    with pytest.raises(Failed, match="ZeroDivisionError"):
        costs.costs([config], "cpu", 1)
    assert not cache.exists(), "nothing is remembered"


class _Here(costs.concurrent.futures.Executor):
    """Runs in this process."""

    def submit(self, function, *arguments):
        done = costs.concurrent.futures.Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done
