"""This machine: processor, memory, what the kernel ended, and the versions that a reviewer needs."""

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Versions, commit and hardware: what a reviewer needs to rerun a number."""
    import torch

    packages = ("statten", "torch", "torchvision", "timm", "ray", "optuna", "spikingjelly", "numpy", "scikit-learn")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    commit: str | None = None
    with suppress(OSError, subprocess.SubprocessError):  # installed without its repository
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": commit,
        "command": sys.argv,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return match.group(1) if match else platform.processor()


def killed_for_memory() -> int:
    """How many processes the kernel has ended for want of memory: in this process's control group, else on this machine.

    Others' jobs on the same machine run out of memory in groups of their own.
    """
    groups = Path("/sys/fs/cgroup")
    with suppress(OSError):  # not Linux
        for number, controllers, path in (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()):
            if number == "0":
                files = [groups / path[1:] / "memory.events"]
            elif "memory" in controllers.split(","):  # version 1; in a container its group is the root of what is mounted
                files = [groups / "memory" / p / "memory.oom_control" for p in (path[1:], "")]
            else:
                continue
            for file in files:
                if (counted := _oom_kills(file)) is not None:
                    return counted
    return _oom_kills(Path("/proc/vmstat")) or 0


def _oom_kills(file: Path) -> int | None:
    with suppress(OSError):
        counted = re.search(r"^oom_kill (\d+)$", file.read_text(), re.M)
        return int(counted[1]) if counted else None
    return None
