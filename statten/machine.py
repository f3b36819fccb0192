"""This machine: cores, memory, compiler, what the kernel ended, and the versions that a reviewer needs."""

import ipaddress
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def leads_here(url: str) -> bool:
    """Whether a URL's host is this machine by a loopback address, which no proxy can reach."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    with suppress(OSError):  # numbers in any form that the system takes, such as 127.1
        host = socket.inet_ntoa(socket.inet_aton(host))
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


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
    match = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.M)
    return match.group(1) if match else platform.processor()


GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def control_groups(controller: str, root: Path = GROUPS, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """Folders of this process's control group (cgroup) and of those around it, which bound it too; the innermost first.

    Of version 2, and of version 1 where it has the controller, such as memory or cpu. Nothing outside Linux.
    """
    with suppress(OSError):
        for number, controllers, path in (line.split(":", 2) for line in membership.read_text().splitlines()):
            if number == "0" or controller in controllers.split(","):
                base = root if number == "0" else root / controller
                # In a container it may not be there: then its group is the root of what is mounted.
                group = base / path.strip("/")
                yield from (group, *(folder for folder in group.parents if folder.is_relative_to(base)))


def usable_cores(root: Path = GROUPS, membership: Path = MEMBERSHIP) -> float:
    """CPU cores that this process may use: after affinity, and the quota of its container or control group."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in control_groups("cpu", root, membership):
        quota = _read(folder / "cpu.max").split() or [
            _read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if all(word.isdigit() for word in quota):  # max, or -1, is no bound
            cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def whole_cores() -> int:
    """The same as a whole number, at least 1: what Ray and pools of threads count in."""
    return max(1, int(usable_cores()))


def usable_memory(root: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its container or control group."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder in control_groups("memory", root, membership):
        limits = [_read(folder / name).strip() for name in ("memory.max", "memory.limit_in_bytes")]
        total = min([total, *(int(limit) for limit in limits if limit.isdigit())])
    return total


def peak_memory() -> int:
    """Bytes that this process has had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def compiler() -> str:
    """Path of the C++ compiler: $CXX, else c++, g++ or clang++; raises LookupError with the reason, and what to do."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    if named:
        raise LookupError(f"$CXX names {named}, which is not on the PATH")
    raise LookupError("there is no C++ compiler; install one, on Debian and Ubuntu with: apt-get install g++")


def killed_for_memory() -> int:
    """How many processes the kernel has ended for want of memory: in this process's control group, else on this machine.

    Others' jobs on the same machine run out of memory in groups of their own.
    """
    for folder in control_groups("memory"):
        for file in (folder / "memory.events", folder / "memory.oom_control"):
            if (counted := _oom_kills(file)) is not None:
                return counted
    return _oom_kills(Path("/proc/vmstat")) or 0


def _read(path: Path) -> str:
    """A file of the system, or nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _oom_kills(file: Path) -> int | None:
    counted = re.search(r"^oom_kill (\d+)$", _read(file), re.M)
    return int(counted[1]) if counted else None
