"""The files that describe data: a split's parts, and the shards of a folder; see data/split.py and data/shards.py."""

from typing import Annotated, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict

from statten.records.reading import STRICT, Count


@with_config(STRICT)
class Bits(TypedDict):
    """The indices of a large part, as a bit for each sample."""

    count: Count
    bits: str
    """Base64 of zlib of numpy.packbits."""


Part = list[Count] | Bits


@with_config(STRICT)
class Splits(TypedDict, total=False):
    """splits.json; versions before knew neither `samples` nor `labels`."""

    train: Part
    validation: Part
    test: Part
    samples: Count
    labels: str
    """SHA-256 of the labels."""
    classes: list[str]
    """Name of each label."""


@with_config(STRICT)
class Shard(TypedDict):
    """A tar shard: where each of its images lies, and its label."""

    name: str
    bytes: Count
    offsets: list[Count]
    sizes: list[Count]
    labels: list[Count]


@with_config(STRICT)
class Index(TypedDict):
    """index.json of a folder of tar shards."""

    version: Literal[1]
    classes: Annotated[list[str], Field(min_length=1)]
    shards: Annotated[list[Shard], Field(min_length=1)]
