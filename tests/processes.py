"""Processes that tests find again by a mark in their environment."""

import os
from contextlib import suppress
from pathlib import Path

LISTENING = "0A"
MARK = "STATTEN_TEST"


def marked(mark: str) -> list[int]:
    """Processes that carry a mark in their environment: what a command started, Ray's daemons and workers included."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue  # gone, or not ours
    return found


def listeners(pids: list[int]) -> dict[tuple[int, str, int], str]:
    """Who of some processes accepts TCP connections, by the kernel: (process, address in hexadecimal, port) to command."""
    owners = {}
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                owners[os.readlink(handle)] = pid
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and (pid := owners.get(f"socket:[{words[9]}]")) is not None:
                address, _, port = words[1].partition(":")
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[pid, address, int(port, 16)] = command
    return found
