"""A command on a terminal of so many columns, as a person sees it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(columns: int, *words: object, cwd: object = None, seconds: float = 300) -> list[str]:
    """Type `statten WORDS` on a terminal of its own, and return the lines that were written, without colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "statten", *map(str, words)]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=environment) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not part:
                break
            written += part
        os.close(master)
        code = process.wait(seconds)
    text = CODES.sub("", written.decode(errors="replace"))
    assert code == 0, text
    return [piece for line in text.split("\n") for piece in line.rstrip("\r").split("\r")]
