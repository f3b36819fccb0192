"""The search: `tune` runs a sweep of trials on Ray, `promote` trains its best trial further."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statten.search.launch import extend_sweep, plan_sweep, resume_sweep, tune
    from statten.search.promotion import promote
    from statten.search.space import load_space, make_space
    from statten.search.sweep import Sweep

# Listing sweeps must not wait for torch, so names are imported when they are first used.
_HOME = {
    "extend_sweep": "launch",
    "plan_sweep": "launch",
    "resume_sweep": "launch",
    "tune": "launch",
    "promote": "promotion",
    "load_space": "space",
    "make_space": "space",
    "Sweep": "sweep",
}

__all__ = ["Sweep", "extend_sweep", "load_space", "make_space", "plan_sweep", "promote", "resume_sweep", "tune"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"statten.search.{_HOME[name]}"), name)
    raise AttributeError(f"module 'statten.search' has no attribute {name!r}")
