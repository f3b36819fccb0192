"""Published weights: what the networks' readers share, from names that wrappers leave to shapes that tell a network."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from statten.errors import UserError

BATCHNORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""What a BatchNorm keeps."""


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict without what DDP, torch.compile and FSDP put into its names; raises UserError where two become one."""
    names = {name: re.sub(r"^(module\.)+", "", _WRAPPED.sub("", name)) for name in state}
    if len(set(names.values())) < len(names):
        twice = next(name for name, plain in names.items() if name != plain and plain in state)
        raise UserError(f"weights: {twice} and {names[twice]} are the same weight; keep one of them")
    return {names[name]: value for name, value in state.items()}


_WRAPPED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def blocks_in(names: Mapping[str, Any], prefix: str) -> int:
    """Number of blocks `prefix`.0, `prefix`.1, ...; raises UserError where one of them is missing."""
    found = {int(m.group(1)) for name in names if (m := re.match(rf"{prefix}\.(\d{{1,9}})\.", name))}
    missing = next((i for i in range(len(found)) if i not in found), None)
    if missing is not None:
        raise UserError(f"published weights: {prefix}.{max(found)} is there, but {prefix}.{missing} is missing")
    return len(found)


def axes(state: Mapping[str, Tensor], name: str, count: int) -> torch.Size:
    """The shape of a published weight; raises UserError where it has another number of axes, or is empty."""
    shape = state[name].shape
    if len(shape) != count or 0 in shape:
        raise UserError(f"published weights: {name} must have {count} axes, none of them empty, but is {list(shape)}")
    return shape


def published_stages(state: Mapping[str, Tensor]) -> list[tuple[int, int, int]]:
    """Width, hidden width of the MLP, and blocks of each stage of published weights; raises UserError."""
    stages: dict[str, list[str]] = {}
    for name in state:
        if found := _MLP.fullmatch(name):
            stages.setdefault(found[1], []).append(name)
    shapes = [(state[names[0]].shape, len(names)) for _, names in sorted(stages.items())]
    if any(len(shape) < 2 or 0 in shape for shape, _ in shapes):
        raise UserError("published weights: those of the MLPs must have 2 axes at least, none of them empty")
    return [(shape[1], shape[0], blocks) for shape, blocks in shapes]


_MLP = re.compile(r"(block\d?|stage\d)\.\d+\.mlp\.(?:fc|mlp)1_(?:conv|linear)\.weight")


def by_tokens(state: Mapping[str, Tensor]) -> bool:
    """Whether q of published blocks is made of a sequence of tokens, by a linear layer or a Conv1d, and not of a map."""
    made = (re.fullmatch(r"block\.\d+\.attn\.q_(?:linear|conv)\.weight", name) for name in state)
    return any(found and state[found[0]].ndim in (2, 3) for found in made)


PUBLISHED_TYPES: dict[str, dict[str, Any]] = {
    "cifar": {"model.num_heads": 8, "model.image_size": 32},
    "imagenet": {"model.image_size": 224},
    "events": {"model.num_heads": 16, "model.image_size": 128, "model.events": True},
}
"""What published code has where its arguments do not say it; heads are D/64 in the networks for ImageNet."""


def published_type(kind: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a type, for weights; raises UserError."""
    stages = published_stages(state)
    width = stages[-1][0] if stages else 64
    return {"model.timesteps": 4, "model.num_heads": max(1, width // 64), **PUBLISHED_TYPES[kind]}


def unplaced(names: Sequence[str]) -> UserError:
    """What to raise for published weights that have no place here."""
    return UserError(f"published weights: no place for {', '.join(names)}")


def joined_qkv(place: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published convolutions and BatchNorms of q, k and v (`q.conv.weight`, `q.norm.bias`, ...) as the pair `place` here."""
    names = ["conv.weight", *(f"norm.{name}" for name in BATCHNORM)]
    if missing := [f"{letter}.{name}" for name in names for letter in "qkv" if f"{letter}.{name}" not in found]:
        raise UserError(f"published weights: {place}: {', '.join(missing)} missing")
    for letter in "qkv":
        bias = found.pop(f"{letter}.conv.bias", None)
        if bias is not None:
            found[f"{letter}.norm.running_mean"] = found[f"{letter}.norm.running_mean"] - bias
    ours = {}
    for name in names:
        tensors = [found[f"{letter}.{name}"] for letter in "qkv"]
        value = tensors[0] if name.endswith("tracked") else torch.cat(tensors)
        kind, _, parameter = name.partition(".")
        ours[f"{place}.{'01'[kind == 'norm']}.{parameter}"] = value.flatten(1)[..., None, None] if kind == "conv" else value
    return ours
