"""Ctrl-C, SIGTERM and SIGHUP: the command leaves everything in order, says how to go on, and ends with 128 + the signal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from statten.errors import Failed


class Signalled(KeyboardInterrupt):
    """A signal asks this process to go."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


class Stopped(Failed):
    """A command that a signal stopped, in a sentence; `code` is the command line's exit code."""

    def __init__(self, error: KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        self.code = 128 + number
        who = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        command = _command(error)
        kept = f"what is finished is kept; go on with: {command}" if command else "nothing was begun that could be resumed"
        super().__init__(f"stopped by {who}; {kept}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Meanwhile each of the signals raises `Signalled`, the first two times: who asks twice does not want to wait."""
    received = 0

    def stop(number: int, frame: object) -> None:
        nonlocal received
        received += 1
        if received <= 2:
            raise Signalled(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]  # nohup's
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():  # what Ray does at the exit is short
            signal.signal(number, signal.SIG_IGN if received else handler)


def _command(error: BaseException) -> str | None:
    """The command that `RunFolder.resumable` left with an error, or with the one before it."""
    found: BaseException | None = error
    while found is not None:
        if notes := getattr(found, "__notes__", None):
            return notes[0]
        found = found.__context__
    return None
