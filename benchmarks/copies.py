"""Copies of a sweep that were taken while it was written: each is resumed, and nothing of it may be lost or mixed up.

    python benchmarks/copies.py [--copies 20] [--trials 24] [--seed 1] [--output benchmarks/copies-cpu.json]

A copy is taken as rsync or a backup takes it: file by file, in any order, while the sweep goes on. So its study may be older
than its trials' folders, or newer, and a result may be there without its checkpoint. Counted over all copies:

    other      trials whose folder holds another configuration than the study says
    lost       epochs that were finished in the copy, and are not, or otherwise, in the resumed sweep (but for times)
    over       trials that were finished in the copy, checkpoint and all, and were trained again
    unfinished copies that did not end with all trials
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from statten.search.sweep import Sweep

SPACE = """\
model.timesteps: {choices: [1, 2]}
model.block_size: {divisors_of: model.timesteps}
train.lr: {float: [1.0e-4, 1.0e-2], log: true}
"""
SMALL = ("model.depth=1", "model.embed_dim=16", "model.num_heads=1", "data.fraction=0.2", "train.epochs=3")
TIMES = ("seconds", "samples_per_second", "latency_ms", "time")


def copy(source: Path, target: Path, order: random.Random) -> None:
    """Copy a folder file by file while it is written; what goes away meanwhile is left out."""
    entries = list(os.scandir(source))
    order.shuffle(entries)
    target.mkdir()
    for entry in entries:
        try:
            if entry.is_dir():
                copy(Path(entry.path), target / entry.name, order)
            else:
                shutil.copyfile(entry.path, target / entry.name)
        except FileNotFoundError:
            continue


def curves(sweep: Sweep) -> dict[int, list[dict[str, float]]]:
    """Each trial's epochs, without times."""
    return {
        number: [{key: value for key, value in row.items() if not key.endswith(TIMES)} for row in run.metrics()]
        for number, run in sweep.folders().items()
    }


def finished(sweep: Sweep) -> dict[int, str]:
    """The lines, times and all, of the trials that are whole."""
    whole = {n: run for n, run in sweep.folders().items() if run.ended and run.keeps_best()}
    return {number: (run.path / "metrics.jsonl").read_text() for number, run in whole.items()}


def statten(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "statten", *map(str, arguments)], stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    order, found = random.Random(options.seed), {"other": 0, "lost": 0, "over": 0, "unfinished": 0, "epochs": 0}
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        (storage / "space.yaml").write_text(SPACE)
        words = [word for field in SMALL for word in ("--set", field)]
        sweep = storage / "original"
        arguments = ["--space", storage / "space.yaml", "--trials", options.trials, "--name", "original", "--storage", storage]
        process = statten("tune", "digits", *arguments, *words)
        copies: list[Path] = []
        while not (sweep / "trials").is_dir():
            time.sleep(0.1)
        while process.poll() is None:
            time.sleep(order.uniform(0.2, 2.0))
            copies.append(storage / f"copy-{len(copies):03d}")
            copy(sweep, copies[-1], order)
        print(
            f"{len(copies)} copies while {options.trials} trials ran; {min(options.copies, len(copies))} are resumed",
            flush=True,
        )
        for path in sorted(order.sample(copies, min(options.copies, len(copies)))):
            before = Sweep(path)
            kept, whole = curves(before), finished(before)
            code = statten("resume", path).wait()
            after = Sweep(path)
            rows, trials = curves(after), list(after.rows())
            other = [t.number for t, _ in trials if after.trial(t.number).path.exists() and after.disagreement(t)]
            lost = sum(row not in rows.get(number, []) for number, epochs in kept.items() for row in epochs)
            over = [number for number, text in whole.items() if finished(after).get(number) != text]
            ended = sum(t.state.is_finished() for t, _ in trials)
            found["other"] += len(other)
            found["lost"] += lost
            found["over"] += len(over)
            found["unfinished"] += ended < options.trials or code not in (0, 2)  # 2: nothing was left to do
            found["epochs"] += sum(map(len, kept.values()))
            had = f"{len(kept)} folders, {sum(map(len, kept.values()))} epochs, {len(whole)} ended"
            print(
                f"{path.name}: {had}; resumed with {code}: {ended} ended, other {other}, lost {lost}, over {over}", flush=True
            )
    print(json.dumps(found))
    if options.output:
        options.output.write_text(json.dumps({"copies": options.copies, "trials": options.trials, **found}, indent=1) + "\n")
    sys.exit(any(found[key] for key in ("other", "lost", "over", "unfinished")))


if __name__ == "__main__":
    main()
