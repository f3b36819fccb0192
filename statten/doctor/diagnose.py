"""All checks in turn, and what they found for a person or a program."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from statten.cluster.session import ray_temp
from statten.display import console
from statten.doctor.checks import (
    Broken,
    Check,
    check_compiler,
    check_cpu,
    check_cupy,
    check_gpu,
    check_instructions,
    check_memory,
    check_python,
    check_ray_folder,
    check_shared_memory,
    check_statten,
    check_storage,
    check_torch,
    check_torchvision,
    check_versions,
    package_check,
    reinstall,
)
from statten.doctor.cluster import ClusterProbe, cluster_checks
from statten.errors import first_line
from statten.storage.run import default_storage


def diagnose(storage: Path | None = None, address: str | None = None) -> list[Check]:
    """Check this machine; takes a few seconds, most of them for importing torch.

    Args:
        storage: folder of all runs; default `$STATTEN_STORAGE`, else ./runs.
        address: also check the Ray cluster at this address (the dashboard's URL, or host:port, ray://host:port or `auto`).
    """
    folder = storage or default_storage()
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("python", True, check_python),
        ("statten", True, check_statten),
        ("versions", True, check_versions),
        ("torch", True, check_torch),
        ("torchvision", True, check_torchvision),
        *[(name, True, package_check(name)) for name in ("timm", "ray", "optuna", "tensorboard")],
        ("gpu", False, check_gpu),
        ("cupy", False, check_cupy),
        ("compiler", False, check_compiler),
        ("cpu", True, check_cpu),
        ("memory", True, check_memory),
        ("instructions", False, check_instructions),
        ("storage", True, lambda: check_storage(folder)),
        ("ray's folder", True, lambda: check_ray_folder(ray_temp())),
        ("shared memory", False, check_shared_memory),
    ]
    found = []
    with console.status("") as status:
        for name, required, check in checks:
            status.update(f"checking {name}")
            found.append(run_check(name, check, required))
        for name, required, check in cluster_checks(ClusterProbe(address, storage)) if address is not None else []:
            status.update(f"checking {name}")
            found.append(run_check(name, check, required))
            if (name, found[-1].state) == ("cluster", "broken"):
                break  # the others would say the same
    return found


def run_check(name: str, check: Callable[[], str], required: bool = True) -> Check:
    """Run one check; whatever it raises becomes its result."""
    try:
        return Check(name, "ok", check(), required=required)
    except Broken as found:
        return Check(name, found.state, found.detail, found.fix, required)
    except Exception as error:
        return Check(name, "broken", f"{type(error).__name__}: {first_line(error)}", reinstall(name), required)


def healthy(checks: Sequence[Check]) -> bool:
    """Whether everything that is required works."""
    return all(check.state == "ok" or not check.required for check in checks)


def to_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as a JSON document."""
    return {"healthy": healthy(checks), "checks": [dataclasses.asdict(check) for check in checks]}


def render(checks: Sequence[Check]) -> Text:
    """The checks for a person: one line each, and what to do below those that failed."""
    text, width = Text(), max((len(check.name) for check in checks), default=0) + 2
    for check in checks:
        colour = {"ok": "green", "missing": "yellow", "broken": "red"}[check.state]
        colour = "red" if check.required and check.state != "ok" else colour
        text.append(f"{check.state:<9}", colour).append(f"{check.name:<{width}}").append(f"{check.detail}\n")
        if check.fix:
            text.append(" " * (9 + width) + f"-> {check.fix}\n", "dim")
    unfit = [check.name for check in checks if check.required and check.state != "ok"]
    if unfit:
        return text.append(f"\nNot ready: {', '.join(unfit)}.", "bold red")
    optional = [check.name for check in checks if check.state != "ok"]
    return text.append("\nReady." + (f" Optional and not here: {', '.join(optional)}." if optional else ""), "bold")
