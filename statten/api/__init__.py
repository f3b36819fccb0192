"""What the commands do, for notebooks and scripts: names or paths, recipes or configs, and results that a notebook shows."""

from statten.api.commands import evaluate, promote, train, tune

__all__ = ["evaluate", "promote", "train", "tune"]
