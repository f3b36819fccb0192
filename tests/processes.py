"""Processes that tests find again by a mark in their environment, and Ray's token in them."""

from pathlib import Path

import ray

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


def forget_token() -> None:
    """Have Ray read token and mode anew; a process keeps those that it met first."""
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    ray._raylet.Config.initialize("")
