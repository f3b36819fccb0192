"""Real processes: `statten` is started, watched through its files, killed, and nothing of it may stay."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from processes import MARK, marked


class Command:
    """A running `statten` command with its output in a file; with `terminal` in a session and on a terminal of its own."""

    def __init__(self, arguments: list[str], folder: Path, terminal: bool = False):
        self.mark = uuid.uuid4().hex
        self.output = folder / f"{self.mark}.log"
        environment = {**os.environ, MARK: self.mark, "PYTHONUNBUFFERED": "1"}
        words = [sys.executable, "-m", "statten", *arguments]
        with self.output.open("w") as file:
            if not terminal:
                self.process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
                return
        self._keyboard, screen = os.openpty()
        self.process = subprocess.Popen(
            words, stdin=screen, stdout=screen, stderr=screen, env=environment, preexec_fn=lambda: os.login_tty(screen)
        )
        os.close(screen)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Keep what the terminal shows."""
        with self.output.open("ab", buffering=0) as file, contextlib.suppress(OSError):  # raised when nobody holds it any more
            while text := os.read(self._keyboard, 65536):
                file.write(text)
        os.close(self._keyboard)

    def press(self, keys: str) -> None:
        """Type into the terminal."""
        os.write(self._keyboard, keys.encode())

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_until(self, condition, seconds: float = 180) -> None:
        """Wait for a condition on the files that the command writes."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended too early:\n{self.text}"
            assert time.monotonic() < deadline, f"waited in vain:\n{self.text}"
            time.sleep(0.02)

    def finish(self, code: int = 0, seconds: float = 420) -> str:
        """Wait for the end and check the exit code."""
        assert self.process.wait(seconds) == code, self.text
        return self.text

    def kill(self) -> None:
        """kill -9 the driver; Ray's own processes must notice and go by themselves."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def gone(self, seconds: float = 180) -> bool:
        """Whether every process of the command ends within some seconds.

        After kill -9 workers go at once, but two of Ray's agents first try for a minute to tell their dead head of it.
        """
        deadline = time.monotonic() + seconds
        while marked(self.mark):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True


@pytest.fixture(scope="session", autouse=True)
def no_token(tmp_path_factory):
    """A home without a token of Ray's, which every Ray that is started here makes and keeps there."""
    cache = Path(os.environ.get("STATTEN_CACHE") or Path.home() / ".cache" / "statten")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STATTEN_CACHE", str(cache))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def statten(tmp_path_factory):
    """Start `statten` commands; at the end nothing that they started may be alive."""
    folder, commands = tmp_path_factory.mktemp("output"), []

    def start(*arguments: object, terminal: bool = False) -> Command:
        commands.append(Command([str(a) for a in arguments], folder, terminal))
        return commands[-1]

    yield start
    survivors = []
    for command in commands:
        if command.process.poll() is None:
            command.process.terminate()
            command.process.wait(30)
        if not command.gone():
            survivors += marked(command.mark)
            for pid in marked(command.mark):
                os.kill(pid, signal.SIGKILL)
    assert not survivors, "processes outlived their test"
