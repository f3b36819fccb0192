"""A worker that makes no step is ended from outside, so that it counts as lost and is replaced.

A thread of the worker could not do it: one that is stopped, or hangs inside a library that keeps the interpreter's lock,
runs no thread. So a small process of its own waits for a sign of life on a pipe, and sends SIGKILL when none comes. A worker
that trains one trial after the other keeps it.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# An empty line is a sign of life; any other says for how many seconds to wait for the next (null: for ever), and where to
# tell. It ends when the pipe is closed, as it is when the worker ends in any way; the worker's number may then be another's.
_CODE = """
import json, os, select, signal, sys, time
worker, seconds, log, rest = int(sys.argv[1]), None, "", b""
while select.select([0], [], [], seconds)[0]:
    if not (read := os.read(0, 4096)):
        sys.exit()
    *lines, rest = (rest + read).split(b"\\n")
    for line in filter(None, lines):
        seconds, log = json.loads(line)
if os.getppid() == worker:
    os.kill(worker, signal.SIGKILL)
    with open(log, "a") as file:
        file.write(f"{time.strftime('%H:%M:%S')} a worker made no step for {seconds:g} s and was ended (scale.hang_seconds)\\n")
"""
_watcher: tuple[int, "subprocess.Popen[bytes]"] | None = None  # of this process, by its number: a fork has none yet


def _tell(line: bytes) -> None:
    """Write a line to the watching process, which is started where there is none."""
    global _watcher
    if _watcher is None or _watcher[0] != os.getpid() or _watcher[1].poll() is not None:
        command = [sys.executable, "-IS", "-c", _CODE, str(os.getpid())]
        # In a session of its own: Ctrl-C at the terminal is not for it.
        _watcher = os.getpid(), subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
    with contextlib.suppress(BrokenPipeError):  # somebody ended it: training goes on unwatched
        _watcher[1].stdin.write(line + b"\n")  # type: ignore[union-attr]


class Watchdog:
    """Kills this process unless `alive` is called at least every `seconds`; None never does.

    Args:
        log: file that gets a line when it happens.
    """

    INTERVAL = 0.5
    """Seconds between two signs of life on the pipe, however often `alive` is called."""

    def __init__(self, seconds: float | None, log: Path):
        self._seconds, self._log, self._at = seconds, log, 0.0

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            _tell(json.dumps([self._seconds, str(self._log.absolute())]).encode())
        return self

    def alive(self) -> None:
        """A step is done."""
        if self._seconds is not None and time.monotonic() - self._at > self.INTERVAL:
            self._at = time.monotonic()
            _tell(b"")

    def __exit__(self, *_: object) -> None:
        if self._seconds is not None:
            _tell(b'[null, ""]')
