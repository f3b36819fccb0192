"""The files by which working copies and their stores agree, and who writes; see storage/mirror.py and files.py."""

from typing import Annotated, NotRequired

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from statten.records.reading import STRICT, Count


@with_config(STRICT)
class Storage(TypedDict):
    """.storage.json: the URI that a working copy belongs to."""

    uri: str


def _inside(name: str) -> str:
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("must be a path inside its run")
    return name


Stamps = Annotated[list[list[Count] | None], Field(min_length=2, max_length=2)]
"""[in the store, here]: size and time of the last change of a file; nothing where it was not seen yet."""


@with_config(STRICT)
class Agreed(TypedDict):
    """.mirror.json: how files were, here and in the store, when both agreed."""

    copy: str
    files: dict[Annotated[str, AfterValidator(_inside)], Stamps]


@with_config(STRICT)
class Writer(TypedDict):
    """The record of who writes a folder, in its lock or in its store."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    time: Annotated[float, Field(gt=0, lt=1e12)]
    """Seconds since 1970."""
    attempt: NotRequired[str]
    ended: NotRequired[bool]
