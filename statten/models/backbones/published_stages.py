"""What the published code calls the modules of networks in stages, and their weights under our names and back.

A type of each network (for CIFAR, for ImageNet, for events) has names of its own; a type is known here by its stem's stride.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from statten.errors import UserError
from statten.models.backbones.weights import blocks_in, plain_names, unplaced


class Place(NamedTuple):
    """A published convolution or BatchNorm (or the head), and the module that it is here, or is a share of."""

    theirs: str
    ours: str
    share: int = 0
    """Which share of ours, by output channels: q, k and v are one convolution here."""
    shares: int = 1
    pointwise: bool = False
    """Whether it is a convolution over a sequence of tokens there, with weights of one dimension less."""


@dataclass(frozen=True)
class PublishedNames:
    """The names of one network; `{}` stands for conv and bn, and types are given by their stem's stride."""

    stems: Mapping[int, tuple[str, ...]]
    """The first embedding's 3 x 3 convolutions, and the branch's."""
    later: Mapping[int, tuple[str, ...]]
    """The same of those behind the first stage."""
    early: str
    """The attention of the early stages' blocks."""
    last: Mapping[int, str]
    """The attention of the last stage's blocks."""
    mlp: Mapping[int, str]
    """The two convolutions of an MLP are called so, and 1 and 2."""

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state_dict as one of ours; raises UserError."""
        theirs = plain_names(state)
        stem = self.stem(theirs)
        places = list(self._places(stem, [blocks_in(theirs, f"stage{i + 1}") for i in range(2 if stem == 8 else 3)]))
        by_name = {place.theirs: place for place in places}
        parts: dict[tuple[str, str], dict[int, Tensor]] = {}
        unknown = []
        for name, value in theirs.items():
            module, _, parameter = name.rpartition(".")
            if place := by_name.get(module):
                parts.setdefault((place.ours, parameter), {})[place.share] = value[..., None] if value.ndim == 3 else value
            else:
                unknown.append(name)
        if unknown:
            raise unplaced(unknown)
        ours = {}
        for (module, parameter), shares in parts.items():
            wanted = [place for place in places if place.ours == module]
            if missing := [f"{place.theirs}.{parameter}" for place in wanted if place.share not in shares]:
                raise UserError(f"published weights: {', '.join(missing)} missing")
            values = [shares[place.share] for place in wanted]
            ours[f"{module}.{parameter}"] = values[0] if parameter == "num_batches_tracked" else torch.cat(values)
        return ours

    def to_theirs(self, state: Mapping[str, Tensor], stem: int, depths: Sequence[int]) -> dict[str, Tensor]:
        """A state_dict of ours under the names of a type, in the order of its modules; raises UserError."""
        places = list(self._places(stem, depths))
        modules: dict[str, dict[str, Tensor]] = {place.ours: {} for place in places}
        for name, value in state.items():
            module, _, parameter = name.rpartition(".")
            if module not in modules:
                raise UserError(f"{name}: the published model has no such weight")
            modules[module][parameter] = value
        theirs = {}
        for place in places:
            for parameter, value in modules[place.ours].items():
                part = value if parameter == "num_batches_tracked" else value.chunk(place.shares)[place.share]
                theirs[f"{place.theirs}.{parameter}"] = (
                    part.flatten(2) if place.pointwise and part.ndim == 4 else part
                ).clone()
        return theirs

    def stem(self, state: Mapping[str, Tensor]) -> int:
        """The type that a state_dict is of."""
        found = {name.removeprefix("patch_embed1.") for name in state if name.startswith("patch_embed1.")}
        for stem, names in self.stems.items():
            if {name.rpartition(".")[0] for name in found} == {name.format(kind) for name in names for kind in ("conv", "bn")}:
                return stem
        raise UserError(
            f"published weights: patch_embed1 is that of no known network, but holds {', '.join(sorted(found)[:5])}"
        )

    def _places(self, stem: int, depths: Sequence[int]) -> Iterator[Place]:
        """Every place that there may be, in the order of the public modules."""
        for i in range(len(depths)):
            names = self.later[stem] if i else self.stems[stem]
            modules = [*(f"convs.{j}" for j in range(len(names) - 1)), "short"]
            for name, module in zip(names, modules, strict=True):
                yield from _pair(f"patch_embed{i + 1}.{name}", f"embeds.{i}.{module}")
        block = 0
        for i, depth in enumerate(depths):
            for j in range(depth):
                theirs, ours = f"stage{i + 1}.{j}", f"blocks.{block}"
                if i == len(depths) - 1:
                    yield from _attention(f"{theirs}.{self.last[stem]}", f"{ours}.attn", "qkv")
                else:
                    yield from _attention(f"{theirs}.{self.early}", f"{ours}.mixer", "qk")
                    depthwise = f"{theirs}.mixer.conv{'5' if stem == 4 and i == 0 else ''}"
                    yield from (Place(depthwise, f"{ours}.mixer.conv.0"), Place(f"{depthwise}_bn", f"{ours}.mixer.conv.1"))
                for fc in (1, 2):
                    yield from _pair(f"{theirs}.mlp.{self.mlp[stem]}{fc}_{{}}", f"{ours}.mlp.fc{fc}")
                block += 1
        yield Place("head", "head")


def _pair(theirs: str, ours: str) -> Iterator[Place]:
    yield from (Place(theirs.format("conv"), f"{ours}.0"), Place(theirs.format("bn"), f"{ours}.1"))


def _attention(theirs: str, ours: str, letters: str) -> Iterator[Place]:
    for share, letter in enumerate(letters):
        yield Place(f"{theirs}.{letter}_conv", f"{ours}.{letters}.0", share, len(letters), pointwise=True)
        yield Place(f"{theirs}.{letter}_bn", f"{ours}.{letters}.1", share, len(letters))
    yield Place(f"{theirs}.proj_conv", f"{ours}.proj.0", pointwise=True)
    yield Place(f"{theirs}.proj_bn", f"{ours}.proj.1")


def _embed(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.embed_{{}}" for name in names)


_SAME, _FC = dict.fromkeys((1, 4, 8), "attn"), dict.fromkeys((1, 4, 8), "fc")
_MAX_STEMS = {
    1: ("proj_{}", *_embed("embed1", "embed2")),
    4: _embed("embed1", "embed2", "embed3", "embed4"),
    8: ("proj_{}", *_embed("max_embed1", "max_embed2", "max_embed3", "embed1")),
}
_STAGE = ("proj3_{}", "proj4_{}", "proj_res_{}")
MAXFORMER = PublishedNames(
    _MAX_STEMS, dict.fromkeys((1, 4, 8), _embed("max_embed1", "embed1", "max_embed2")), "attn", _SAME, _FC
)  # fmt: skip
MS_QKFORMER = PublishedNames(
    {**_MAX_STEMS, 4: ("proj_{}", "proj_{}1", "proj_{}2", "rpe_{}")},
    {**dict.fromkeys((1, 8), _embed("embed1", "max_embed1", "embed2")), 4: _STAGE},
    "attn", _SAME, _FC,
)  # fmt: skip
QKFORMER = PublishedNames(
    {
        1: ("proj_{}", "proj1_{}", "proj_res_{}"),
        4: ("proj_{}", "proj1_{}", "proj2_{}", "proj_res_{}"),
        8: ("proj_{}", "proj1_{}", "proj2_{}", "proj3_{}", "proj_res_{}"),
    },
    {1: _STAGE, 4: _STAGE, 8: ("proj_{}", "proj4_{}", "proj_res_{}")},
    "tssa", {1: "ssa", 4: "attn", 8: "ssa"}, {1: "mlp", 4: "fc", 8: "mlp"},
)  # fmt: skip
