"""The fault table of benchmarks/faults.py in a short form: a training on a cluster of three nodes, two kills, nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path):
    output = tmp_path / "faults.json"
    command = [sys.executable, BENCHMARK, "--kills", 4, "--seed", 1, "--epochs", 3, "--output", output]
    done = subprocess.run(
        [*map(str, command), "--only", "training"], capture_output=True, text=True, timeout=900, env={**os.environ}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["results"]
    assert sum(row["kills"] for row in rows) == 2, "the other half is for a sweep"
    for row in rows:
        assert row["finished"] and row["lost"] == row["twice"] == 0 and row["equal"] is not False
        assert len(row["resume_s"]) == row["kills"]
