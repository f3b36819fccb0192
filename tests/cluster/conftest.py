"""Machines of benchmarks/machines.py: real addresses, real links; skipped where they cannot be made."""

import pytest
from machines import Machines, missing


@pytest.fixture(scope="module")
def machines(request):
    """Make machines: `machines("a", "b", programs=SSH, one_home=True)`; none of them outlives the module."""
    made: list[Machines] = []

    def make(*names: str, programs: tuple[str, ...] = (), **options) -> Machines:
        if reason := missing(*programs):
            pytest.skip(reason)
        made.append(Machines(*names, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
