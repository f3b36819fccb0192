"""Results of a run that cannot be written: refused before anything is measured, or written elsewhere."""

import json
import subprocess
from pathlib import Path

import pytest
from evaluated import TINY, make_run

from statten.evaluation.anytime import anytime
from statten.evaluation.evaluator import evaluate
from statten.evaluation.grid import best_pair
from statten.metrics.meter import SpikeMeter
from statten.storage.run import Run

MEASURE = {
    "evaluate": ("evaluate {run}", "report.json"),
    "anytime": ("anytime {run}", "anytime.json"),
    "grid": ("grid {run} --timesteps 1", "grid-validation.json"),
    "compare": ("compare {run} {run}", "report.json"),
}
REFUSED = r"cannot be written: .*: (Read-only file system|Permission denied|Not a directory); name a folder .* --output DIR"


def tiny_run(path: Path) -> Run:
    return make_run(path, **{name.replace(".", "__"): value for name, value in TINY.items()})


@pytest.fixture
def unmeasured(monkeypatch):
    """Whatever is measured fails the test."""
    monkeypatch.setattr(SpikeMeter, "__enter__", lambda self: pytest.fail("was measured before it was asked"))


@pytest.mark.parametrize("command", MEASURE)
def test_a_run_that_cannot_be_written_is_measured_elsewhere_or_not_at_all(command, tmp_path, read_only, typed, monkeypatch):
    run = read_only(tiny_run(tmp_path / "run").path)
    words, file = MEASURE[command]
    words = words.replace("{run}", str(run)).split()
    with monkeypatch.context() as patch:
        patch.setattr(SpikeMeter, "__enter__", lambda self: pytest.fail("was measured before it was asked"))
        code, out, err = typed(*words)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert (
        err.startswith(f"statten: {run}/evaluations/digits-T1-b1-")
        and "; name a folder for the results with --output DIR" in err
    )
    output = tmp_path / "mine" / "results"
    assert typed(*words, "--output", output)[0] == 0
    (found,) = output.glob(f"run-digits-T1-b1-*/{file}")
    assert json.loads(found.read_text())["target"] == "run"


def test_a_file_in_the_way_is_named(tmp_path, typed, unmeasured):
    run = tiny_run(tmp_path / "run")
    (run.path / "evaluations").write_text("mine")
    code, _, err = typed("evaluate", run.path)
    assert code == 2 and "/run/evaluations: Not a directory" in err and (run.path / "evaluations").read_text() == "mine"
    assert typed("evaluate", run.path, "--output", run.path / "evaluations")[0] == 2


def test_a_full_disk_is_known_before(tmp_path, typed, unmeasured):
    run, small = tiny_run(tmp_path / "run"), tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        code, _, err = typed("evaluate", run.path, "--output", small / "results")
        assert code == 2 and f"{small}: No space left on device" in err and not list(small.iterdir())
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_link_in_a_run_of_somebody_else_leads_nowhere(tmp_path):
    run, mine = tiny_run(tmp_path / "run"), tmp_path / "mine"
    mine.write_text("precious")
    folder = Path(evaluate(run.path)["folder"])
    for name in ("rates.png", "report.json", "anytime.png"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(mine)
    evaluate(run.path)
    anytime(run.path)
    assert mine.read_text() == "precious" and not (folder / "rates.png").is_symlink()


def test_the_best_pair_of_a_run_that_cannot_be_written(tmp_path, read_only):
    run = tiny_run(tmp_path / "run")
    read_only(run.path)
    fields, why, _ = best_pair(run)
    assert fields.keys() >= {"model.timesteps", "model.block_size"} and "pairs" in why


@pytest.mark.parametrize("words", ["export {run} --output {there}/new", "bench lif --repeats 1 --output {there}/out.json"])
def test_an_output_that_cannot_be_written_is_refused_at_once(words, tmp_path, read_only, typed, unmeasured):
    run, there = tiny_run(tmp_path / "run"), tmp_path / "there"
    there.mkdir()
    read_only(there)
    code, out, err = typed(*words.format(run=run.path, there=there).split())
    assert (
        (code, out) == (2, "") and f"statten: {there}: cannot be written: " in err and err.endswith("; name another --output\n")
    )
