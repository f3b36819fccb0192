"""Many small pieces of work on files, side by side: reading, decoding and compressing leave Python's lock free."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from statten.files import check_writable, exclusive
from statten.machine import whole_cores

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""(what, how many are done, of how many)"""


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def default_workers() -> int:
    """Threads for work on files."""
    return min(32, whole_cores())


def gathered(pool: ThreadPoolExecutor, function: Callable[[int], T], count: int) -> Iterator[T]:
    """Results of function(0), function(1), ... in this order; what is not begun is given up after an error."""
    ahead = 4 * pool._max_workers  # bounds what waits to be taken
    futures = {i: pool.submit(function, i) for i in range(min(ahead, count))}
    try:
        for i in range(count):
            yield futures.pop(i).result()
            if i + ahead < count:
                futures[i + ahead] = pool.submit(function, i + ahead)
    finally:
        for future in futures.values():
            future.cancel()


@contextmanager
def sole_writer(folder: Path, what: str) -> Iterator[None]:
    """Make a folder if there is none, and be the only process that writes it; raises UserError where it cannot be written."""
    check_writable(folder, f"there {what} must be made: name a folder that you may write, such as a copy")
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        yield
