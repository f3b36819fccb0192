"""Energies with an SI prefix, the same one in all of a page."""

from collections.abc import Iterable
from dataclasses import dataclass

_PREFIXES = (("pJ", 1.0), ("nJ", 1e3), ("µJ", 1e6), ("mJ", 1e9), ("J", 1e12))


@dataclass(frozen=True)
class EnergyUnit:
    """What energies are written in."""

    name: str
    """Such as nJ."""
    pj: float
    """How many pJ it is."""

    @classmethod
    def of(cls, pj: Iterable[float]) -> "EnergyUnit":
        """The one in which the largest of some energies in pJ is from 1 to 1000."""
        largest = max(pj, default=0.0)
        return next((cls(*prefix) for prefix in reversed(_PREFIXES) if largest >= prefix[1]), cls(*_PREFIXES[0]))

    def number(self, pj: float) -> str:
        """An energy in it, rounded, without its name."""
        value = pj / self.pj
        return f"{value:.4g}" if value < 1e4 else f"{value:,.0f}"

    def text(self, pj: float) -> str:
        """An energy in it, rounded, with its name."""
        return f"{self.number(pj)} {self.name}"


def si(number: float) -> str:
    """A count in short: 12.34 M."""
    size, prefix = next(((s, p) for s, p in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if abs(number) >= s), (1.0, ""))
    return f"{number / size:.4g}{prefix}"
