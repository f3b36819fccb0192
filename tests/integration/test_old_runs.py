"""A run, an interrupted run and a sweep of the package before it had backbones are evaluated, resumed and extended as ever."""

import json
import shutil
from pathlib import Path

import pytest

from statten.search.sweep import Sweep
from statten.storage.run import Run

OLD = Path(__file__).parents[1] / "golden" / "runs"


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return Path(shutil.copytree(OLD, tmp_path_factory.mktemp("old") / "runs"))


@pytest.mark.slow
def test_an_old_run_is_evaluated_to_the_same_numbers_in_the_same_folder(storage, ray, done):
    done("evaluate", "old", "--storage", storage)
    (folder,) = (storage / "old" / "evaluations").iterdir()
    assert folder.name == "digits-T2-b1-18d74b561c", "what decides the numbers has the digest that it had"
    report = json.loads((folder / "report.json").read_text())
    assert report["top1"] == pytest.approx(81.8941504178273, abs=1e-9)
    totals = report["energy"]["total"]["pj"], report["energy"]["non_spiking"]["total"]["pj"]
    assert totals == pytest.approx((69171.67353760445, 809158.4), rel=1e-9)


@pytest.mark.slow
def test_an_old_run_that_was_interrupted_goes_on(storage, ray, done):
    before = Run(storage / "half").metrics()
    done("resume", "half", "--storage", storage)
    run = Run(storage / "half")
    assert run.state == "finished" and len(run.metrics()) == 40 and run.metrics()[: len(before)] == before


@pytest.mark.slow
def test_an_old_sweep_is_extended(storage, ray, done):
    before = {number: run.metrics() for number, run in Sweep(storage / "sweep").folders().items()}
    done("extend", "sweep", "--trials", "1", "--storage", storage)
    after = {number: run.metrics() for number, run in Sweep(storage / "sweep").folders().items()}
    assert sorted(after) == [0, 1, 2] and {number: after[number] for number in before} == before
    done("report", "sweep", "--storage", storage)
