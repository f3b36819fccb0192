"""The STAtten transformer (Lee et al., CVPR 2025) on the Spike-driven Transformer (Yao et al., NeurIPS 2023). Shapes:

    T timesteps   B batch   C input channels   D embedding   H, W the image or the token grid

The residual stream is real-valued (membrane shortcut): every branch starts with a neuron and ends with a BatchNorm, and there
is no LayerNorm. Forward returns logits only; hooks on `spiking_layers()` see the spikes.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from statten.config import ModelConfig
from statten.errors import UserError
from statten.models.attention.core import AttentionCore, FramePool
from statten.models.backbones.base import (
    Backbone,
    Neuron,
    Values,
    attention_core,
    channel_parts,
    conv_bn,
    drop_rates,
    dropped,
    fired,
    init_weights,
    neurons_at,
    per_frame,
    residual,
    spatial_mean,
)
from statten.models.backbones.weights import BATCHNORM, blocks_in, by_tokens, plain_names, unplaced
from statten.models.memory import MaxPool
from statten.models.operations import Operation, classifier, conv, conv3x3
from statten.neurons import LIF
from statten.registry import ATTENTION


class PatchEmbed(nn.Module):
    """Spiking patch splitting: four convolutions, up to four halvings, and a shortcut that keeps the last map's values."""

    def __init__(self, config: ModelConfig, neuron: Neuron, backend: str):
        super().__init__()
        D = config.embed_dim
        widths = [config.in_channels, D // 8, D // 4, D // 2, D]
        pairs = pairwise(widths)
        self.stages = nn.ModuleList(conv_bn(nn.Conv2d(i, o, 3, padding=1, bias=False), backend) for i, o in pairs)
        self.lifs = nn.ModuleList(neuron() for _ in range(4))
        self.pools = nn.ModuleList(MaxPool(stride=2) if digit == "1" else nn.Identity() for digit in config.pooling)
        self.rpe = conv_bn(nn.Conv2d(D, D, 3, padding=1, bias=False), backend)

    def forward(self, x_TBCHW: Tensor, timesteps: int) -> Tensor:
        """Frames [T, B, C, H, W], or an image [1, B, C, H, W] for all T, to the residual stream [T, B, D, H', W'].

        What one image gives in front of the first neuron is the same at every timestep, and computed once.
        """
        x = x_TBCHW
        for stage, lif, pool in zip(self.stages[:3], self.lifs[:3], self.pools[:3], strict=True):
            x = per_frame(pool, fired(cast(LIF, lif), stage, x, timesteps))
        shortcut = per_frame(self.pools[3], per_frame(self.stages[3], x))
        return residual(shortcut) + per_frame(self.rpe, self.lifs[3](shortcut))


class Attention(nn.Module):
    """Spikes to q, k and v by one convolution, an attention core, and a projection back to the stream."""

    def __init__(self, config: ModelConfig, neuron: Neuron, backend: str):
        super().__init__()
        D = config.embed_dim
        self.lif, self.q_lif, self.k_lif, self.v_lif = (neuron() for _ in range(4))
        self.qkv = conv_bn(nn.Conv2d(D, 3 * D, 1, bias=False), backend)
        self.pool = FramePool() if config.masked else None
        self.core = attention_core(config, backend)
        self.proj = conv_bn(nn.Conv2d(D, D, 1), backend)

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to this branch's addition, both [T, B, D, H, W]."""
        s = self.lif(x_TBDHW)
        q, k, v = channel_parts(per_frame(self.qkv, s), 3)
        q, k, v, mask = self.q_lif(q), self.k_lif(k), self.v_lif(v), None
        if self.pool is not None:
            q, k, v, mask = (self.pool(spikes) for spikes in (q, k, v, s))
        return per_frame(self.proj, self.core(q, k, v, mask))


class MLP(nn.Module):
    """Two 1 x 1 convolutions, each behind a neuron; with a second `shortcut` where the hidden width is that of the stream."""

    def __init__(self, width: int, mlp_ratio: float, neuron: Neuron, backend: str, shortcut: bool = True):
        super().__init__()
        D, hidden = width, int(width * mlp_ratio)
        self.lif1, self.lif2 = neuron(), neuron()
        self.fc1 = conv_bn(nn.Conv2d(D, hidden, 1), backend)
        self.fc2 = conv_bn(nn.Conv2d(hidden, D, 1), backend)
        self.inner_shortcut = shortcut and hidden == D

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to this branch's addition, both [T, B, D, H, W]."""
        spikes = self.lif1(x_TBDHW)
        if self.inner_shortcut:
            hidden = per_frame(self.fc1, spikes)
            return hidden + per_frame(self.fc2, self.lif2(x_TBDHW + hidden))
        return per_frame(self.fc2, fired(self.lif2, self.fc1, spikes))

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        return {"mlp.fc1": self.lif1, "mlp.fc2": self.lif2}


class Block(nn.Module):
    """Attention and MLP around the residual stream, with stochastic depth on both.

    Args:
        attn: such as Attention.
        mlp: the MLP.
        drop_rate: share of samples whose branch is left out in training.
    """

    def __init__(self, attn: nn.Module, mlp: MLP, drop_rate: float):
        super().__init__()
        self.attn, self.mlp, self.drop_rate = attn, mlp, drop_rate

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream [T, B, D, H, W] to the same."""
        x = x_TBDHW + dropped(self.attn(x_TBDHW), self.drop_rate, self.training)
        return x + dropped(self.mlp(x), self.drop_rate, self.training)

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons of this block by name, in the order of the forward pass."""
        attn = cast(Attention, self.attn)
        layers = {"attn.in": attn.lif, "attn.q": attn.q_lif, "attn.k": attn.k_lif, "attn.v": attn.v_lif}
        return {**layers, f"attn.{attn.core.neuron_name}": attn.core.lif, **self.mlp.spiking_layers()}


def make_block(config: ModelConfig, backend: str, drop_rate: float) -> Block:
    """A block of the Spike-driven Transformer, of the config's embedding dimension."""
    attn = Attention(config, neurons_at(config, "attention", backend), backend)
    mlp = MLP(config.embed_dim, config.mlp_ratio, neurons_at(config, "mlp", backend), backend)
    return Block(attn, mlp, drop_rate)


def block_operations(config: ModelConfig, block: str, width: int, side: int) -> Iterator[Operation]:
    """The operations of a block.

    Args:
        config: the network.
        block: name that layers and points begin with, such as blocks.0.
        width: D.
        side: H of the token grid.
    """
    core = ATTENTION[config.attention]
    yield conv(f"{block}.attn.qkv", f"{block}.attn.in", width, 3 * width, side)
    yield from core.operations(config, block, side**2, width)
    yield conv(f"{block}.attn.proj", f"{block}.attn.mixed", width, width, side, levels=core.levels(config))
    yield from mlp_operations(config, block, width, side)


def mlp_operations(config: ModelConfig, block: str, width: int, side: int) -> Iterator[Operation]:
    """The operations of a block's MLP; arguments as those of `block_operations`."""
    hidden = int(width * config.mlp_ratio)
    yield conv(f"{block}.mlp.fc1", f"{block}.mlp.fc1", width, hidden, side)
    yield conv(f"{block}.mlp.fc2", f"{block}.mlp.fc2", hidden, width, side)


class STAttenTransformer(Backbone):
    """The Spike-driven Transformer with STAtten's, or its own, attention.

    Args:
        config: the model's part of the config.
        backend: implementation of the neurons, a key of NEURON_BACKENDS or `auto`.
    """

    sliced: ClassVar[Mapping[str, int] | None] = {".attn.qkv.": 3}

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__(config, backend)
        self.embed = PatchEmbed(config, neurons_at(config, "embed", backend), backend)
        self.blocks = nn.ModuleList(make_block(config, backend, rate) for rate in drop_rates(config))
        self.head_lif = neurons_at(config, "head", backend)()
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        self.apply(init_weights)

    def logits(self, x_TBCHW: Tensor) -> Tensor:
        """As `Backbone.logits`."""
        x_TBDHW = self.embed(x_TBCHW, self.timesteps)
        for block in self.blocks:
            x_TBDHW = self.run(block, x_TBDHW)
        return self.head(self.head_lif(spatial_mean(x_TBDHW)))

    def spiking_layers(self) -> dict[str, LIF]:
        """As `Backbone.spiking_layers`."""
        layers = {f"embed.{i}": cast(LIF, lif) for i, lif in enumerate(self.embed.lifs)}
        for i, block in enumerate(self._blocks()):
            layers |= {f"blocks.{i}.{name}": lif for name, lif in block.spiking_layers().items()}
        return {**layers, "head": self.head_lif}

    def attention_cores(self) -> dict[str, AttentionCore]:
        """As `Backbone.attention_cores`."""
        return {f"blocks.{i}.attn": cast(Attention, block.attn).core for i, block in enumerate(self._blocks())}

    def derived_inputs(self) -> dict[str, tuple[nn.Module, Values]]:
        """embed.0.pooled (the next convolution's input), blocks.0.attn.query (q in event mode, pooled), blocks.0.attn.mixed
        (what the projection reads, where it is not the core's own spikes)."""
        points: dict[str, tuple[nn.Module, Values]] = {}
        c = self.config
        for i in (0, 1, 2):
            if c.pooling[i] == "1":
                points[f"embed.{i}.pooled"] = (
                    self.embed.pools[i], lambda _, output: output.unflatten(0, (self.timesteps, -1)),
                )  # fmt: skip
        for prefix, core in self.attention_cores().items():
            if c.masked:
                points[f"{prefix}.query"] = (core, lambda inputs, _: inputs[0])
            if core.mixes(c):
                points[f"{prefix}.mixed"] = (core, lambda _, output: output)
        return points

    @classmethod
    def operations(cls, config: ModelConfig) -> Iterator[Operation]:
        """As `Backbone.operations`."""
        c, D = config, config.embed_dim
        widths, side = [c.in_channels, D // 8, D // 4, D // 2, D], c.image_size
        for i, (inner, outer) in enumerate(pairwise(widths)):
            point = None if i == 0 else f"embed.{i - 1}" + (".pooled" if c.pooling[i - 1] == "1" else "")
            yield conv3x3(f"embed.conv{i}", point, inner, outer, side)
            side = (side + 1) // 2 if c.pooling[i] == "1" else side
        yield conv3x3("embed.rpe", "embed.3", D, D, side)
        for i in range(c.depth):
            yield from block_operations(c, f"blocks.{i}", D, side)
        yield classifier(D, c.num_classes, "head")

    @classmethod
    def activations(cls, config: ModelConfig) -> int:
        """As `Backbone.activations`; the embedding is worth about two blocks."""
        return config.timesteps * config.embed_dim * (config.depth + 2)

    @classmethod
    def operators(cls, config: ModelConfig) -> list[str]:
        """Attention's, and max-pooling."""
        pools = [f"embed.pools.{i}" for i, digit in enumerate(config.pooling) if digit == "1"]
        pools += ["attn.pool"] * config.masked
        return ATTENTION[config.attention].operators(config) + [f"max_pool2d ({', '.join(pools)})"] * bool(pools)

    @classmethod
    def recognises(cls, state: Mapping[str, Tensor]) -> bool:
        """As `Backbone.recognises`."""
        return any(re.match(r"block\.\d", name) for name in state) and not by_tokens(state)

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state_dict, with or without wrappers' prefixes such as "module.", as one of ours.

        Its `talking_heads` weights never get a gradient, and are dropped.

        Raises:
            UserError: weights that have no place here, or lack their partners, by name.
        """
        theirs = {name: value for name, value in plain_names(state).items() if not name.endswith("talking_heads.weight")}
        depth = blocks_in(theirs, "block")
        names, ours = _modules(depth), {}
        for i in range(depth):
            for kind, part, parameters in (("conv", 0, ("weight",)), ("bn", 1, BATCHNORM)):
                for parameter in parameters:
                    keys = [f"block.{i}.attn.{letter}_{kind}.{parameter}" for letter in "qkv"]
                    missing = [key for key in keys if key not in theirs]
                    if missing:
                        raise UserError(f"published weights: {', '.join(missing)} missing")
                    tensors = [theirs.pop(key) for key in keys]
                    joined = tensors[0] if parameter == "num_batches_tracked" else torch.cat(tensors)
                    ours[f"blocks.{i}.attn.qkv.{part}.{parameter}"] = joined
        unknown = []
        for name, value in theirs.items():
            module, _, parameter = name.rpartition(".")
            if module in names and parameter in _PARAMETERS:
                ours[f"{names[module]}.{parameter}"] = value
            else:
                unknown.append(name)
        if unknown:
            raise unplaced(unknown)
        return ours

    @classmethod
    def to_published(cls, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """As `Backbone.to_published`; the unused `talking_heads` weights are not made up."""
        depth = blocks_in(state, "blocks")
        names, theirs = {ours: published for published, ours in _modules(depth).items()}, {}
        for name, value in state.items():
            module, _, parameter = name.rpartition(".")
            joined = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.([01])", module)
            if joined:
                kind = ("conv", "bn")[int(joined[2])]
                shares = [value] * 3 if parameter == "num_batches_tracked" else value.chunk(3)
                for letter, share in zip("qkv", shares, strict=True):
                    theirs[f"block.{joined[1]}.attn.{letter}_{kind}.{parameter}"] = share.clone()
            elif module in names:
                theirs[f"{names[module]}.{parameter}"] = value
            else:
                raise UserError(f"{name}: the published model has no such weight")
        return theirs

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))


# The published names are on the left; its q, k and v are one convolution here.
_PARAMETERS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "w"}


def _modules(depth: int) -> dict[str, str]:
    """Published module name to ours, for modules that stand for themselves."""
    names = {"patch_embed.rpe_conv": "embed.rpe.0", "patch_embed.rpe_bn": "embed.rpe.1", "head": "head", "head_lif": "head_lif"}
    for stage in range(4):
        suffix = stage or ""
        names[f"patch_embed.proj_conv{suffix}"] = f"embed.stages.{stage}.0"
        names[f"patch_embed.proj_bn{suffix}"] = f"embed.stages.{stage}.1"
        names[f"patch_embed.proj_lif{suffix}"] = f"embed.lifs.{stage}"
    for i in range(depth):
        theirs, ours = f"block.{i}", f"blocks.{i}"
        names |= {f"{theirs}.attn.proj_conv": f"{ours}.attn.proj.0", f"{theirs}.attn.proj_bn": f"{ours}.attn.proj.1"}
        for layer in (1, 2):
            names[f"{theirs}.mlp.fc{layer}_conv"] = f"{ours}.mlp.fc{layer}.0"
            names[f"{theirs}.mlp.fc{layer}_bn"] = f"{ours}.mlp.fc{layer}.1"
            names[f"{theirs}.mlp.fc{layer}_lif"] = f"{ours}.mlp.lif{layer}"
    return names
