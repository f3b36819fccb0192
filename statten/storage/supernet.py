"""The supernet folder: a run whose steps train parts of one network, and what its parts were found to be.

It holds what a run holds (see run.py), and

    supernet.json     kind, creation, the digest of space.yaml, the points that are validated after every epoch
    space.yaml        of which points its weights are
    points.jsonl      one line per evaluated point: with inherited weights, so never among the trials of a sweep
    front.json        the front, beside that of a proxy that costs nothing
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from statten.config import Config
from statten.errors import UserError
from statten.files import write_text
from statten.records.reading import parse, read, read_bytes
from statten.records.runs import Front, Inherited
from statten.space.loading import load_space
from statten.space.space import Point, Space
from statten.storage.run import Run, checkpoints

SPACE, POINTS, FRONT = "space.yaml", "points.jsonl", "front.json"


class Supernet(Run):
    """A supernet on disk."""

    marker = "supernet.json"
    noun = "supernet"

    @classmethod
    def begin(
        cls, path: Path, config: Config, space: Space, watched: dict[str, Point], points: int, extra: dict[str, Any]
    ) -> "Supernet":
        """Make the folder, whole or not at all; raises UserError when the name is taken.

        Args:
            path: where.
            config: of the largest network.
            space: of which its parts are the points.
            watched: points that are validated after every epoch, by what they are called.
            points: how many are evaluated in the end.
            extra: file names to further JSON content, such as splits.json.
        """
        text = space.dump()

        def add(aside: Path) -> None:
            write_text(aside / SPACE, text, durable=False)
            (aside / "checkpoints").mkdir()

        about = {"space": _digest(text.encode()), "watched": watched, "points": points}
        return cls._make(path, config, about, extra, add)

    @cached_property
    def space(self) -> Space:
        """Of which its parts are the points, read once; raises UserError where the file is not the one that it began with."""
        found = read_bytes(self.path / SPACE)
        if _digest(found) != self.info.get("space"):
            raise UserError(
                f"{self.path / SPACE}: was changed since the supernet began with it, and its weights are those of that space; "
                f"set it back, or train another: statten supernet"
            )
        return load_space(self.path / SPACE, self.config)

    @property
    def watched(self) -> dict[str, Point]:
        """Points that are validated after every epoch, by what they are called."""
        return self.info.get("watched", {})

    @property
    def points(self) -> int:
        """How many points are evaluated."""
        return self.info.get("points", 0)

    def weights(self) -> Path:
        """The checkpoint whose weights its parts have: the last, for all of the schedule belongs to it.

        Raises:
            UserError: training is not finished.
        """
        found = checkpoints(self.checkpoint_folder)
        if self.state != "finished" or not found:
            raise UserError(f"{self.path}: the supernet is not trained yet; go on with: {self.resume_command}")
        return found[-1]

    def evaluated(self) -> list[Inherited]:
        """Points that were evaluated with its last weights, by number; a line that was cut off by a crash is left out."""
        try:
            lines = read_bytes(self.path / POINTS).splitlines()
        except FileNotFoundError:
            return []
        rows: dict[int, Inherited] = {}
        newest = self.weights().name
        for line in lines:
            try:
                row = parse(line, Inherited, POINTS)
            except UserError:
                continue
            if row["checkpoint"] == newest:
                rows.setdefault(row["number"], row)
        return [rows[number] for number in sorted(rows)]

    def front(self) -> list[Inherited]:
        """Points of the front, the best in the first objective first; raises UserError before all points are evaluated."""
        self.weights()
        found = read(self.path / FRONT, Front)
        if found is None:
            raise UserError(f"{self.path}: not all of its points are evaluated yet; go on with: {self.resume_command}")
        return found["front"]

    @property
    def complete(self) -> bool:
        """Whether it is trained, and every point that it was asked for is evaluated."""
        return self.state == "finished" and (self.path / FRONT).is_file() and len(self.evaluated()) >= self.points


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


KINDS: dict[str, type[Run]] = {kind.noun: kind for kind in (Run, Supernet)}
"""Run folders by what they are called."""


def kind_of(path: Path) -> type[Run] | None:
    """Whether a folder is a run or a supernet; None where it is neither."""
    return next((kind for kind in KINDS.values() if (path / kind.marker).is_file()), None)
