"""How a backbone lays out its layers: stages of blocks, each with its width and its token grid, and what a config must keep to.

A line of BACKBONES names its layout. Nothing here needs torch: the config is checked before anything heavy is imported.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from statten.config.model import ModelConfig


class Stage(NamedTuple):
    """Blocks of one width on one token grid."""

    width: int
    """Channels of the residual stream."""
    side: int
    """Height and width of the token grid."""
    blocks: int
    """Transformer blocks."""


class Layout(NamedTuple):
    """The stages of a network, and the rules of its fields."""

    stages: Callable[["ModelConfig"], list[Stage]]
    """The stages of a config that keeps to the rules."""
    problems: Callable[["ModelConfig"], Iterator[str]]
    """A sentence for each rule that a config breaks."""


def halved(side: int, times: int) -> int:
    """A map's side after so many halvings, each rounded up."""
    for _ in range(times):
        side = (side + 1) // 2
    return side


def nearest_multiple(value: int, of: int) -> int:
    """The multiple of a number, above 0, that is nearest to a value."""
    return max(of, round(value / of) * of)


def _columns(c: "ModelConfig") -> list[Stage]:
    return [Stage(c.embed_dim, halved(c.image_size, c.pooling.count("1")), c.depth)]


def _column_problems(c: "ModelConfig") -> Iterator[str]:
    if c.embed_dim % 8:
        yield f"`embed_dim` must be a multiple of 8, but got {c.embed_dim}; the nearest is {nearest_multiple(c.embed_dim, 8)}"
    elif c.embed_dim % c.num_heads:
        divisors = [h for h in range(1, c.embed_dim + 1) if c.embed_dim % h == 0]
        heads = min(divisors, key=lambda h: abs(h - c.num_heads))
        yield (
            f"`embed_dim` must be divisible by `num_heads`, but got "
            f"(embed_dim={c.embed_dim}, num_heads={c.num_heads}); the nearest num_heads is {heads}"
        )
    halvings = c.pooling.count("1")
    if c.image_size < 2**halvings:
        yield (
            f"`image_size` must be at least {2**halvings} for pooling {c.pooling!r} ({halvings} halvings), "
            f"but got {c.image_size}"
        )


# Two or three stages, each of half the grid and twice the width of the one before; the stem halves as `stem_stride` says.


def _pyramid(c: "ModelConfig") -> list[Stage]:
    count = _levels(c)
    widths = c.stage_dims or tuple(c.embed_dim // 2**i for i in reversed(range(count)))
    early = [1, 2] if c.stem == 4 else [1] * (count - 1)
    depths = c.stage_depths or (*early, c.depth - sum(early))
    first = int(math.log2(c.stem))
    sides = [halved(c.image_size, first + i) for i in range(count)]
    return [Stage(*stage) for stage in zip(widths, sides, depths, strict=True)]


def _levels(c: "ModelConfig") -> int:
    return 2 if c.stem == 8 else 3


def _pyramid_problems(c: "ModelConfig") -> Iterator[str]:
    count, name = _levels(c), c.backbone
    yield from _explicit(c, count, count, least=count + (c.stem == 4))
    if c.stage_dims is None:
        unit = math.lcm(2 ** (count - 1) * c.num_heads, 16 if c.stem == 8 else 8)
        if c.embed_dim % unit:
            yield (
                f"`embed_dim` must be a multiple of {unit} for {name} with {c.num_heads} heads in each of {count} stages, "
                f"but got {c.embed_dim}; the nearest is {nearest_multiple(c.embed_dim, unit)}"
            )
    else:
        part = 8 if c.stem == 8 else 2
        if c.stage_dims[0] % part:
            yield f"`stage_dims` must begin with a multiple of {part} for {name}'s stem, but got {list(c.stage_dims)}"
    yield from _large_enough(c, int(math.log2(c.stem)) + count - 1)


# Meta-SpikeFormer: convolutions at four sizes, then blocks at two widths on one grid.


def _meta(c: "ModelConfig") -> list[Stage]:
    widths, side = meta_widths(c), halved(c.image_size, 4)
    depths = c.stage_depths or (c.depth - 2, 2)
    return [Stage(width, side, blocks) for width, blocks in zip(widths[2:], depths, strict=True)]


def meta_widths(c: "ModelConfig") -> tuple[int, ...]:
    """Widths of Meta-SpikeFormer's four sizes: two of convolutions, two of blocks."""
    D = c.embed_dim
    return c.stage_dims or (D // 4, D // 2, D, 5 * D // 4)


def _meta_problems(c: "ModelConfig") -> Iterator[str]:
    yield from _explicit(c, 4, 2, least=3, last=2)
    unit = math.lcm(8, 4 * c.num_heads)
    if c.stage_dims is None and c.embed_dim % unit:
        yield (
            f"`embed_dim` must be a multiple of {unit} for {c.backbone} with {c.num_heads} heads, whose widths are D/4, D/2, D "
            f"and 5D/4, but got {c.embed_dim}; the nearest is {nearest_multiple(c.embed_dim, unit)}"
        )
    elif c.stage_dims is not None and c.stage_dims[0] % 2:
        yield f"`stage_dims` must begin with a multiple of 2 for {c.backbone}, but got {list(c.stage_dims)}"
    yield from _large_enough(c, 4)


def _explicit(c: "ModelConfig", dims: int, depths: int, least: int, last: int = -1) -> Iterator[str]:
    """Rules of `stage_depths`, `stage_dims` and `depth`; stage_dims[last] is the embedding dimension."""
    name = c.backbone
    if c.stage_depths is None:
        if c.depth < least:
            yield f"`depth` must be at least {least} for {name}, whose stages all have blocks, but got {c.depth}"
    elif len(c.stage_depths) != depths or min(c.stage_depths) < 1:
        yield f"`stage_depths` must hold {depths} numbers above 0 for {name}, one a stage, but got {list(c.stage_depths)}"
    elif sum(c.stage_depths) != c.depth:
        yield (
            f"`depth` must be the sum of `stage_depths`, but got (depth={c.depth}, stage_depths={list(c.stage_depths)}); "
            f"the nearest is {sum(c.stage_depths)}"
        )
    if c.stage_dims is None:
        return
    if len(c.stage_dims) != dims or min(c.stage_dims) < 1:
        yield f"`stage_dims` must hold {dims} numbers above 0 for {name}, one a stage, but got {list(c.stage_dims)}"
    elif c.stage_dims[last] != c.embed_dim:
        yield (
            f"`embed_dim` must be that of `stage_dims`, but got (embed_dim={c.embed_dim}, stage_dims={list(c.stage_dims)}); "
            f"the nearest is {c.stage_dims[last]}"
        )
    elif odd := [width for width in c.stage_dims if width % c.num_heads]:
        yield f"`stage_dims` must be divisible by `num_heads`, but {odd[0]} is not by {c.num_heads}"


def _large_enough(c: "ModelConfig", halvings: int) -> Iterator[str]:
    if c.image_size < 2**halvings:
        yield f"`image_size` must be at least {2**halvings} for {c.backbone} ({halvings} halvings), but got {c.image_size}"


LAYOUTS = {
    "columns": Layout(_columns, _column_problems),
    "pyramid": Layout(_pyramid, _pyramid_problems),
    "meta": Layout(_meta, _meta_problems),
}
"""`Network.layout`: one width and grid (`pooling`); a pyramid of stages (`stem_stride`); Meta-SpikeFormer's."""
