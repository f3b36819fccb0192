"""A worker that makes no step is ended from outside, so that it counts as lost and is replaced.

A thread of the worker could not do it: one that is stopped, or hangs inside a library that keeps the interpreter's lock,
runs no thread. So a small process of its own waits for a sign of life on a pipe, and sends SIGKILL when none comes.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

# Ends when the pipe is closed, as it is when the worker ends in any way; the worker's number may then be another's.
_CODE = """
import os, select, signal, sys, time
worker, seconds, log = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
while select.select([0], [], [], seconds)[0]:
    if not os.read(0, 4096):
        sys.exit()
if os.getppid() == worker:
    os.kill(worker, signal.SIGKILL)
    with open(log, "a") as file:
        file.write(f"{time.strftime('%H:%M:%S')} a worker made no step for {seconds:g} s and was ended (scale.hang_seconds)\\n")
"""


class Watchdog:
    """Kills this process unless `alive` is called at least every `seconds`; None never does.

    Args:
        log: file that gets a line when it happens.
    """

    INTERVAL = 0.5
    """Seconds between two signs of life on the pipe, however often `alive` is called."""

    def __init__(self, seconds: float | None, log: Path):
        self._arguments = None if seconds is None else [str(os.getpid()), str(seconds), str(log)]
        self._process: subprocess.Popen[bytes] | None = None
        self._at = 0.0

    def __enter__(self) -> "Watchdog":
        if self._arguments:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", "-c", _CODE, *self._arguments],
                stdin=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C at the terminal is not for it
            )
        return self

    def alive(self) -> None:
        """A step is done."""
        if self._process and time.monotonic() - self._at > self.INTERVAL:
            self._at = time.monotonic()
            with contextlib.suppress(BrokenPipeError):  # somebody ended it: training goes on unwatched
                self._process.stdin.write(b".")  # type: ignore[union-attr]

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.stdin.close()  # type: ignore[union-attr]
            self._process.wait()
            self._process = None
