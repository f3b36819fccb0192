"""Train spiking vision transformers with spatial-temporal attention, and search their architecture on a Ray cluster.

Example:
    >>> import statten
    >>> config = statten.load_config("digits")
    >>> run = statten.train(config, name="first", overrides={"train.epochs": 1, "model.depth": 1})
    >>> statten.evaluate("first")["samples"]
    359

Targets are names in the storage, paths, or what another of these functions returned; configs are recipes, files or `Config`.
"""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from statten.api import evaluate, promote, train, tune
    from statten.config import Config, load_config
    from statten.models import build_model
    from statten.prediction import load_model
    from statten.training.loop import fit

__version__ = "0.1.0"

# Where each public name lives: torch, timm and ray are imported when a name that needs them is first used.
_HOME = {
    "Config": "statten.config",
    "load_config": "statten.config",
    "build_model": "statten.models",
    "fit": "statten.training.loop",
    "train": "statten.api",
    "tune": "statten.api",
    "promote": "statten.api",
    "evaluate": "statten.api",
    "load_model": "statten.prediction",
}

__all__ = ["Config", "build_model", "evaluate", "fit", "load_config", "load_model", "promote", "train", "tune"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'statten' has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the names that are not imported yet, for help() and for completion."""
    return sorted({*globals(), *__all__})


# `timm.create_model("statten_8_768")` works after `import statten`, whichever of the two is imported first.
wrapt.register_post_import_hook(lambda _: importlib.import_module("statten.models.timm_models"), "timm")
