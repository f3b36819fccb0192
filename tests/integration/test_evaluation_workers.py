"""`statten evaluate --workers 2` in real processes: the same counts as one process, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from evaluated import make_run
from safetensors.torch import load_file


def evaluate(*arguments: object) -> dict:
    command = [sys.executable, "-m", "statten.cli", "evaluate", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_workers_count_what_one_process_counts(tmp_path):
    run = make_run(tmp_path / "run", "digits_events")
    one = evaluate(run.path)
    kept = load_file(Path(one["folder"]) / "samples.safetensors")
    two = evaluate(run.path, "--workers", 2)
    assert two["workers"] == 2 and two["folder"] == one["folder"]
    for field in ("samples", "top1", "top5", "loss", "confusion", "calibration", "layers", "points", "energy"):
        assert one[field] == two[field], field
    again = load_file(Path(two["folder"]) / "samples.safetensors")
    assert set(kept) == set(again) and all((kept[k] == again[k]).all() for k in kept)
    assert not list(Path(two["folder"]).glob("chunks-*")), "and nothing is left behind"
