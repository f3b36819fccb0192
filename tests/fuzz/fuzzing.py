"""Damaged files of every kind that the program reads, and what it may do with them: read them, or say one sentence.

    python tests/fuzz/fuzzing.py 5000               5,000 inputs of every kind, and a table
    python tests/fuzz/fuzzing.py 5000 result.json   of one kind; the suite tries a few of each (STATTEN_FUZZ=N: N of each)

An input is mishandled where anything but a result or a UserError comes out (inside a data set, the sentence for one sample),
where the answer takes longer than 2 s of computing, or where anything is written.
"""

import argparse
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from statten.errors import UserError  # noqa: E402 - the tests' own modules lie above this folder

SECONDS = 2.0
"""Of computing that an answer takes at most."""
HANG = 20
"""Seconds after which an answer is not waited for any more."""
Mutate = Callable[[bytes, random.Random], bytes]
Action = Callable[[], object]


@dataclass(frozen=True)
class Target:
    """A file, and everything that reads it."""

    path: Path
    mutate: Mutate
    reads: list[Action]
    sentences: tuple[type[BaseException], ...] = (UserError,)
    """What may come out instead of a result: its text is one sentence."""
    never: bool = False
    """Whether a damaged file must not even lead to a sentence: it is left out and named."""


@dataclass
class Outcome:
    """What became of the inputs of a kind."""

    inputs: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    mishandled: list[str] = field(default_factory=list)


def fuzz(name: str, target: Target, inputs: int, sandbox: Path, first: int = 0) -> Outcome:
    """Damage a file so many times, each time in the same way, and look what its readers do."""
    outcome, sound = Outcome(), target.path.read_bytes()
    for read in target.reads:  # what is imported first may write caches, and the sound file must be read
        read()
    previous = signal.signal(signal.SIGALRM, _hangs)
    try:
        for number in range(first, first + inputs):
            content = target.mutate(sound, random.Random(f"{name} {number}"))
            target.path.write_bytes(content)
            before, began = _state(sandbox), time.process_time()
            for read in target.reads:
                signal.alarm(HANG)
                try:
                    read()
                except target.sentences as error:
                    said = getattr(error, "problems", [str(error)])
                    odd = [text for text in said if not text or "\n" in text.strip() or len(text) > 1600]
                    if target.never or odd:
                        outcome.mishandled.append(f"input {number}: {odd or said}")
                except Exception:
                    outcome.mishandled.append(f"input {number}: {content[:300]!r}\n{traceback.format_exc(limit=-8)}")
                finally:
                    signal.alarm(0)
            seconds = time.process_time() - began
            outcome.inputs, outcome.slowest = outcome.inputs + 1, max(outcome.slowest, seconds)
            outcome.seconds += seconds
            if seconds > SECONDS:
                outcome.mishandled.append(f"input {number}: took {seconds:.1f} s")
            if (after := _state(sandbox)) != before:
                outcome.mishandled.append(f"input {number}: wrote {sorted(map(str, dict(after ^ before)))}")
    finally:
        signal.signal(signal.SIGALRM, previous)
        target.path.write_bytes(sound)
    return outcome


def _hangs(*_: object) -> None:
    raise TimeoutError(f"no answer within {HANG} s")


def _state(sandbox: Path) -> set[tuple[str, tuple[int, int]]]:
    """Every file with its size and time; of folders the names."""
    found = set()
    for folder, _, files in os.walk(sandbox):
        found.add((folder, (0, 0)))
        for file in files:
            path = os.path.join(folder, file)
            stat = os.lstat(path)
            found.add((path, (stat.st_size, stat.st_mtime_ns)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", type=int)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--first", type=int, default=0, help="number of the first input; the suite's begin with 0")
    options = parser.parse_args()
    from kinds import KINDS

    print("| kind | inputs | mishandled | slowest answer | all answers |\n|---|---|---|---|---|")
    failures, total = 0, 0
    logging.getLogger("statten").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="statten-fuzz-") as folder:
        for name in options.kinds or KINDS:
            sandbox = Path(folder) / name.replace(" ", "-")
            os.environ |= places(sandbox)
            tempfile.tempdir = None
            os.chdir(sandbox / "here")
            outcome = fuzz(name, KINDS[name].build(sandbox), options.inputs, sandbox, options.first)
            shown = f"{outcome.inputs:,} | {len(outcome.mishandled)} | {outcome.slowest:.3f} s | {outcome.seconds:.1f} s"
            print(f"| {name} | {shown} |", flush=True)
            for text in outcome.mishandled[:10]:
                print(f"{name}, {text}", file=sys.stderr, flush=True)
            total, failures = total + outcome.inputs, failures + len(outcome.mishandled)
            os.chdir(folder)
            shutil.rmtree(sandbox)
    print(f"\n{total:,} inputs, {failures} mishandled")
    sys.exit(bool(failures))


def places(sandbox: Path) -> dict[str, str]:
    """Folders in a sandbox for everything that a process could write, by the variables that name them; and `here`."""
    for name in ("home", "tmp", "cache", "here"):
        (sandbox / name).mkdir(parents=True)
    return {"HOME": str(sandbox / "home"), "TMPDIR": str(sandbox / "tmp"), "STATTEN_CACHE": str(sandbox / "cache")}


if __name__ == "__main__":
    main()
