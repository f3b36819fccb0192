"""Ctrl-C, SIGTERM and SIGHUP: the command leaves everything in order, says how to go on, and ends with 128 + the signal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from statten.errors import Failed

_received = list[int]()
"""Signals that came, the first of them first: where Ray waits, it raises a KeyboardInterrupt of its own for each."""


class Stopped(Failed):
    """A command that a signal stopped, in a sentence; `code` is the command line's exit code."""

    def __init__(self, error: BaseException):
        number = _received[0] if _received else signal.SIGINT
        self.code = 128 + number
        who = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        command = _command(error)
        kept = f"what is finished is kept; go on with: {command}" if command else "nothing was begun that could be resumed"
        super().__init__(f"stopped by {who}; {kept}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Meanwhile each of the signals raises KeyboardInterrupt, the first two times: who asks twice does not want to wait."""
    _received.clear()

    def stop(number: int, frame: object) -> None:
        _received.append(number)
        if len(_received) <= 2:
            raise KeyboardInterrupt(signal.Signals(number))

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]  # nohup's
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():  # what Ray does at the exit is short
            signal.signal(number, signal.SIG_IGN if _received else handler)


def _command(error: BaseException) -> str | None:
    """The command that `RunFolder.resumable` left with an error, or with the one before it."""
    found: BaseException | None = error
    while found is not None:
        if notes := getattr(found, "__notes__", None):
            return notes[0]
        found = found.__context__
    return None
