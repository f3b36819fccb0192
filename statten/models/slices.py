"""Smaller networks cut out of a larger one's weights: first channels of every layer, first blocks of the depth.

A network of less depth, width or MLP ratio has the same names of weights, each of at most the larger one's shape. Its slice is
the first entries along every axis; where a layer's outputs are several parts one behind the other, as q, k and v are, the first
of each part. T, b and the number of heads own no weights: a slice of half the width has as many heads as its config says, each
of half as many channels, as the network has that is built by itself. Which layers are parts, the backbone says (`sliced`).

BatchNorm's running statistics belong to the network that found them, and a slice begins without: see `recalibrated`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from statten.config import ModelConfig
from statten.errors import UserError
from statten.models.backbones.base import Backbone
from statten.models.factory import build_model
from statten.registry import BACKBONES

FREE = ("timesteps", "block_size", "num_heads")
"""Fields of the model that own no weights, and change what is computed."""
NESTED = ("depth", "embed_dim", "mlp_ratio")
"""Fields of the model whose smaller values have slices of the weights of larger ones."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def check_sliced(backbone: str) -> None:
    """Raise UserError where nobody has said how a backbone's smaller networks are cut out of larger ones."""
    if BACKBONES[backbone].sliced is None:
        can = [name for name in BACKBONES if BACKBONES[name].sliced is not None]
        raise UserError(
            f"model.backbone: {backbone} does not say how smaller networks are cut out of its weights; take one of "
            f"{', '.join(can)}, or search it with: statten tune"
        )


def corner(weight: Tensor, shape: Sequence[int], parts: int = 1) -> Tensor:
    """The first entries of a weight as a view [parts, rows of each, ...], of which `shape` is the flat one."""
    assert weight.ndim == len(shape) and all(n <= w for n, w in zip(shape, weight.shape, strict=True)), (weight.shape, shape)
    rows = weight.unflatten(0, (parts, -1))
    return rows[(slice(None), slice(shape[0] // parts), *(slice(n) for n in shape[1:]))]


def part_of(name: str, weight: Tensor, shape: Sequence[int], parts: Mapping[str, int]) -> Tensor:
    """The slice of a weight that a smaller network has under the same name; the weight itself where that is no smaller.

    Args:
        name: of the weight, as in a state_dict.
        weight: of the larger network.
        shape: of the smaller network's.
        parts: into how many parts the outputs of a layer fall, by a piece of its name: `Backbone.sliced`.

    Returns:
        A tensor of that shape in channels-last, as networks are run; gradients go back to the weight.
    """
    if tuple(weight.shape) == tuple(shape):
        return weight
    part = corner(weight, shape, _parts(name, parts)).flatten(0, 1)
    return part.contiguous(memory_format=torch.channels_last if part.ndim == 4 else torch.contiguous_format)


def drawn(name: str, weight: Tensor, shape: Sequence[int], parts: Mapping[str, int]) -> Tensor:
    """Which entries of a weight a smaller network has, bool of the weight's shape."""
    mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    (corner(mask, shape, _parts(name, parts)) if weight.ndim else mask).fill_(True)
    return mask


def _parts(name: str, parts: Mapping[str, int]) -> int:
    return next((number for piece, number in parts.items() if piece in name), 1)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Shape of everything in a state_dict."""
    return {name: value.shape for name, value in network.state_dict().items()}


def hollow(config: ModelConfig, backend: str = "auto") -> Backbone:
    """A network without weights, on PyTorch's meta device: what `sliced_call` runs with the weights of another."""
    with torch.device("meta"):
        return build_model(config, backend)


@lru_cache(maxsize=256)
def _shapes_at(config: ModelConfig) -> dict[str, torch.Size]:
    return shapes(hollow(config, "torch"))


def extract(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The state_dict of a config's network, cut out of a larger one's; in memory of its own.

    Raises:
        UserError: the backbone's weights do not nest, or the larger network is smaller in some layer.
    """
    check_sliced(config.backbone)
    wanted = _shapes_at(config)
    for name, shape in wanted.items():
        if name not in state or any(n > there for n, there in zip(shape, state[name].shape, strict=True)):
            there = list(state[name].shape) if name in state else "no such weight"
            raise UserError(f"{name}: cannot be cut out, for it has {list(shape)} in the network asked for, but got {there}")
    parts = BACKBONES[config.backbone].sliced
    return {name: part_of(name, state[name], shape, parts).detach().clone() for name, shape in wanted.items()}


def sliced_call(inner: Backbone, outer: Backbone, x: Tensor) -> Tensor:
    """What a smaller network computes with the slices of a larger one's weights; gradients go back to these.

    Args:
        inner: the smaller network, as `hollow` makes it; its training mode counts. Its running statistics are used in
            evaluation alone, and in training they are forgotten.
        outer: the larger network.
        x: as the networks take it.
    """
    parts = BACKBONES[inner.config.backbone].sliced
    there = {**dict(outer.named_parameters()), **dict(outer.named_buffers())}
    weights = {name: part_of(name, there[name], shape, parts) for name, shape in shapes(inner).items()}
    if inner.training:  # which would move the larger network's statistics towards those of a smaller
        weights |= {name: value.clone() for name, value in weights.items() if name.endswith(_STATISTICS)}
    return functional_call(inner, weights, (x,))
