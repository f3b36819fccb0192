"""What a model says of images or clips, for programs and for notebooks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from statten.display.html import table_html


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image or clip."""

    source: str
    """Its file, or its place among those that were given."""
    classes: Sequence[str]
    """Name of each class [K]."""
    probabilities: np.ndarray
    """Softmax probability of each class [K], float64."""
    timesteps: int
    """Timesteps after which the answer was given."""
    energy_uj: float
    """Energy of these timesteps in microjoules, by the energy ledger: the mean over the samples that ran with it."""

    @property
    def label(self) -> int:
        """Number of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """Name of the most probable class."""
        return self.classes[self.label]

    @property
    def probability(self) -> float:
        """Probability of the most probable class, from 0 to 1."""
        return float(self.probabilities[self.label])

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most probable classes, or as many as there are, with their probabilities, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[i], float(self.probabilities[i])) for i in order]

    def document(self, k: int = 1) -> dict[str, Any]:
        """The same in plain values, with the k most probable classes."""
        return {
            "file": self.source, "class": self.name, "label": self.label, "probability": self.probability,
            "top": [{"class": name, "probability": share} for name, share in self.top(k)],
            "timesteps": self.timesteps, "energy_uj": self.energy_uj,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Prediction({self.source}: {self.name} {100 * self.probability:.1f} %, timesteps={self.timesteps})"

    def _repr_html_(self) -> str:
        return Predictions([self])._repr_html_()


class Predictions(list[Prediction]):
    """What a model says of several images or clips, in their order."""

    @property
    def names(self) -> list[str]:
        """Name of the most probable class of each."""
        return [found.name for found in self]

    @property
    def labels(self) -> np.ndarray:
        """Number of the most probable class of each [N]."""
        return np.array([found.label for found in self], dtype=np.int64)

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax probabilities [N, K]."""
        return np.stack([found.probabilities for found in self])

    @property
    def average_timesteps(self) -> float:
        """Timesteps that an answer took on average."""
        return sum(found.timesteps for found in self) / len(self)

    @property
    def energy_uj(self) -> float:
        """Energy of an answer in microjoules, on average."""
        return sum(found.energy_uj for found in self) / len(self)

    def table(self, k: int = 1) -> tuple[list[str], list[list[str]]]:
        """Columns and cells of a table for people: file, class and its probability, further classes, timesteps, energy."""
        columns = ["file", "class", "%", *(["then"] if k > 1 else []), "T", "uJ"]
        return columns, [_cells(found, k) for found in self]

    def __repr__(self) -> str:
        return f"Predictions({len(self)}: {', '.join(self.names[:5])}{', ...' if len(self) > 5 else ''})"

    def _repr_html_(self) -> str:
        columns, rows = self.table(k=3)
        return table_html(columns, rows, right=(2, 4, 5))  # % of probability, T timesteps, uJ of energy


def _cells(found: Prediction, k: int) -> list[str]:
    (name, probability), *others = found.top(k)
    then = [", ".join(f"{other} {100 * share:.1f} %" for other, share in others)] if k > 1 else []
    return [found.source, name, f"{100 * probability:.1f}", *then, str(found.timesteps), f"{found.energy_uj:.4g}"]


def columns_csv(k: int) -> list[str]:
    """Columns of a CSV file with the k most probable classes."""
    ranked = [column for rank in range(1, k + 1) for column in (f"class_{rank}", f"probability_{rank}")]
    return ["file", *ranked, "timesteps", "energy_uj"]


def rows_csv(predictions: Iterable[Prediction], k: int) -> list[list[Any]]:
    """Rows of a CSV file with the k most probable classes."""
    return [
        [found.source, *[cell for pair in found.top(k) for cell in pair], found.timesteps, found.energy_uj]
        for found in predictions
    ]
