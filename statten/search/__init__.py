"""The search: `tune` runs a sweep of trials on Ray, `promote` trains its best trial further."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statten.search.launch import extend_sweep, resume_sweep, tune
    from statten.search.plan import plan_sweep
    from statten.search.promotion import promote
    from statten.search.sweep import Sweep
    from statten.space.loading import load_space, make_space

# Listing sweeps must not wait for torch, so names are imported when they are first used.
_HOME = {
    "extend_sweep": "statten.search.launch",
    "plan_sweep": "statten.search.launch",
    "resume_sweep": "statten.search.launch",
    "tune": "statten.search.launch",
    "promote": "statten.search.promotion",
    "load_space": "statten.space",
    "make_space": "statten.space",
    "Sweep": "statten.search.sweep",
}

__all__ = ["Sweep", "extend_sweep", "load_space", "make_space", "plan_sweep", "promote", "resume_sweep", "tune"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'statten.search' has no attribute {name!r}")
