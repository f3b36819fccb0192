"""Spikformer (Zhou et al., ICLR 2023), with its own attention or STAtten's. Shapes:

    T timesteps   B batch   C input channels   D embedding   H, W the image or the token grid

Every branch ends with a neuron, so that the residual stream is a sum of spikes: whole numbers from 0 to 2 + 2 depth, which the
convolutions of a block read as they are. There is no neuron in front of the classifier.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from statten.config import ModelConfig
from statten.errors import UserError
from statten.models.attention.core import AttentionCore
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
from statten.models.backbones.weights import by_tokens, joined_qkv, plain_names, published_type, unplaced
from statten.models.memory import MaxPool
from statten.models.operations import Operation, classifier, conv, conv3x3
from statten.neurons import LIF
from statten.registry import ATTENTION


class PatchEmbed(nn.Module):
    """Spiking patch splitting: four convolutions with neurons, up to four halvings of the spikes, and a spiking branch."""

    def __init__(self, config: ModelConfig, neuron: Neuron, backend: str):
        super().__init__()
        D = config.embed_dim
        pairs = pairwise([config.in_channels, D // 8, D // 4, D // 2, D])
        self.stages = nn.ModuleList(conv_bn(nn.Conv2d(i, o, 3, padding=1, bias=False), backend) for i, o in pairs)
        self.lifs = nn.ModuleList(neuron() for _ in range(4))
        self.pools = nn.ModuleList(MaxPool(stride=2) if digit == "1" else nn.Identity() for digit in config.pooling)
        self.rpe, self.rpe_lif = conv_bn(nn.Conv2d(D, D, 3, padding=1, bias=False), backend), neuron()

    def forward(self, x_TBCHW: Tensor, timesteps: int) -> Tensor:
        """Frames [T, B, C, H, W], or an image [1, B, C, H, W] for all T, to the residual stream [T, B, D, H', W']."""
        x = x_TBCHW
        for stage, lif, pool in zip(self.stages, self.lifs, self.pools, strict=True):
            x = per_frame(pool, fired(cast(LIF, lif), stage, x, timesteps))
        return residual(x) + fired(self.rpe_lif, self.rpe, x)


class Attention(nn.Module):
    """The stream to q, k and v by one convolution, an attention core, and a projection that fires.

    Args:
        width: D.
        config: the model's part of the config.
        backend: implementation of the neurons.
    """

    def __init__(self, width: int, config: ModelConfig, backend: str):
        super().__init__()
        neuron = neurons_at(config, "attention", backend)
        self.qkv = conv_bn(nn.Conv2d(width, 3 * width, 1, bias=False), backend)
        self.q_lif, self.k_lif, self.v_lif, self.proj_lif = (neuron() for _ in range(4))
        self.core = attention_core(config, backend)
        self.proj = conv_bn(nn.Conv2d(width, width, 1), backend)

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to the spikes that are added to it, both [T, B, D, H, W]."""
        q, k, v = channel_parts(per_frame(self.qkv, x_TBDHW), 3)
        return fired(self.proj_lif, self.proj, self.core(self.q_lif(q), self.k_lif(k), self.v_lif(v), None))

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        return {"q": self.q_lif, "k": self.k_lif, "v": self.v_lif, self.core.neuron_name: self.core.lif, "proj": self.proj_lif}


class MLP(nn.Module):
    """Two 1 x 1 convolutions, each in front of a neuron; arguments as Attention's."""

    def __init__(self, width: int, config: ModelConfig, backend: str):
        super().__init__()
        neuron, hidden = neurons_at(config, "mlp", backend), int(width * config.mlp_ratio)
        self.fc1, self.lif1 = conv_bn(nn.Conv2d(width, hidden, 1), backend), neuron()
        self.fc2, self.lif2 = conv_bn(nn.Conv2d(hidden, width, 1), backend), neuron()

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to the spikes that are added to it, both [T, B, D, H, W]."""
        return fired(self.lif2, self.fc2, fired(self.lif1, self.fc1, x_TBDHW))

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass; fc2 reads those behind fc1, and `mlp.out` are added."""
        return {"mlp.fc2": self.lif1, "mlp.out": self.lif2}


class Block(nn.Module):
    """Attention and MLP, whose spikes are added to the residual stream, with stochastic depth on both.

    Args:
        attn: such as Attention.
        width: D.
        config: the model's part of the config.
        backend: implementation of the neurons.
        drop_rate: share of samples whose branch is left out in training.
    """

    def __init__(self, attn: nn.Module, width: int, config: ModelConfig, backend: str, drop_rate: float):
        super().__init__()
        self.attn, self.mlp, self.drop_rate = attn, MLP(width, config, backend), drop_rate

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream [T, B, D, H, W] to the same."""
        x = x_TBDHW + dropped(self.attn(x_TBDHW), self.drop_rate, self.training)
        return x + dropped(self.mlp(x), self.drop_rate, self.training)

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        attn = {f"attn.{name}": lif for name, lif in cast(Attention, self.attn).spiking_layers().items()}
        return {**attn, **self.mlp.spiking_layers()}

    def streams(self, prefix: str, timesteps: int) -> dict[str, tuple[nn.Module, Values]]:
        """Where the convolutions of a block read the stream: `attn.stream` and `mlp.stream`, as `Backbone.derived_inputs`."""
        attn, read = cast(Attention, self.attn), stream_read(timesteps)
        return {f"{prefix}.attn.stream": (attn.qkv[0], read), f"{prefix}.mlp.stream": (self.mlp.fc1[0], read)}


def stream_read(timesteps: int) -> Values:
    """What a convolution that reads the stream is given, [T, B, D, H, W]."""
    return lambda inputs, _: inputs[0].unflatten(0, (timesteps, -1))


def block_operations(config: ModelConfig, block: str, width: int, side: int, added: int) -> Iterator[Operation]:
    """The operations of a block with Attention.

    Args:
        config: the network.
        block: name that layers and points begin with, such as blocks.0.
        width: D.
        side: H of the token grid.
        added: how many spikes the stream is the sum of.
    """
    core = ATTENTION[config.attention]
    yield conv(f"{block}.attn.qkv", f"{block}.attn.stream", width, 3 * width, side, levels=added)
    yield from core.operations(config, block, side**2, width)
    yield conv(f"{block}.attn.proj", f"{block}.attn.mixed", width, width, side, levels=core.levels(config))
    yield from mlp_operations(config, block, width, side, added + 1)


def mlp_operations(config: ModelConfig, block: str, width: int, side: int, added: int) -> Iterator[Operation]:
    """The operations of a block's MLP; arguments as those of `block_operations`."""
    hidden = int(width * config.mlp_ratio)
    yield conv(f"{block}.mlp.fc1", f"{block}.mlp.stream", width, hidden, side, levels=added)
    yield conv(f"{block}.mlp.fc2", f"{block}.mlp.fc2", hidden, width, side)


class Spikformer(Backbone):
    """Spikformer; arguments as those of `Backbone`."""

    sliced: ClassVar[Mapping[str, int] | None] = {".attn.qkv.": 3}

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__(config, backend)
        D = config.embed_dim
        self.embed = PatchEmbed(config, neurons_at(config, "embed", backend), backend)
        self.blocks = nn.ModuleList(
            Block(Attention(D, config, backend), D, config, backend, rate) for rate in drop_rates(config)
        )
        self.head = nn.Linear(D, config.num_classes)
        self.apply(init_weights)

    def logits(self, x_TBCHW: Tensor) -> Tensor:
        """As `Backbone.logits`."""
        x_TBDHW = self.embed(x_TBCHW, self.timesteps)
        for block in self.blocks:
            x_TBDHW = self.run(block, x_TBDHW)
        return self.head(spatial_mean(x_TBDHW))

    def spiking_layers(self) -> dict[str, LIF]:
        """As `Backbone.spiking_layers`."""
        layers = {f"embed.{i}": cast(LIF, lif) for i, lif in enumerate(self.embed.lifs)} | {"embed.rpe": self.embed.rpe_lif}
        for i, block in enumerate(self._blocks()):
            layers |= {f"blocks.{i}.{name}": lif for name, lif in block.spiking_layers().items()}
        return layers

    def attention_cores(self) -> dict[str, AttentionCore]:
        """As `Backbone.attention_cores`."""
        return {f"blocks.{i}.attn": cast(Attention, block.attn).core for i, block in enumerate(self._blocks())}

    def derived_inputs(self) -> dict[str, tuple[nn.Module, Values]]:
        """embed.0.pooled (the next convolution's input), blocks.0.attn.stream and blocks.0.mlp.stream."""
        points: dict[str, tuple[nn.Module, Values]] = {
            f"embed.{i}.pooled": (self.embed.pools[i], lambda _, output: output.unflatten(0, (self.timesteps, -1)))
            for i, digit in enumerate(self.config.pooling)
            if digit == "1"
        }
        for i, block in enumerate(self._blocks()):
            points |= block.streams(f"blocks.{i}", self.timesteps)
        return points

    @classmethod
    def operations(cls, config: ModelConfig) -> Iterator[Operation]:
        """As `Backbone.operations`."""
        c, D = config, config.embed_dim
        side, point = c.image_size, None
        for i, (inner, outer) in enumerate(pairwise([c.in_channels, D // 8, D // 4, D // 2, D])):
            yield conv3x3(f"embed.conv{i}", point, inner, outer, side)
            pooled = c.pooling[i] == "1"
            side, point = (side + 1) // 2 if pooled else side, f"embed.{i}" + ".pooled" * pooled
        yield conv3x3("embed.rpe", point, D, D, side)
        for i in range(c.depth):
            yield from block_operations(c, f"blocks.{i}", D, side, added=2 + 2 * i)
        yield classifier(D, c.num_classes, None, once=not c.per_timestep_logits)

    @classmethod
    def operators(cls, config: ModelConfig) -> list[str]:
        """Attention's, and max-pooling."""
        pools = [f"embed.pools.{i}" for i, digit in enumerate(config.pooling) if digit == "1"]
        return ATTENTION[config.attention].operators(config) + [f"max_pool2d ({', '.join(pools)})"] * bool(pools)

    @classmethod
    def recognises(cls, state: Mapping[str, Tensor]) -> bool:
        """As `Backbone.recognises`."""
        return by_tokens(state)

    @classmethod
    def published_defaults(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """As `Backbone.published_defaults`: linear layers are CIFAR's, MLPs over maps ImageNet's, and over tokens events'."""
        if any("_linear." in name for name in state):
            return {**published_type("cifar", state), "model.pooling": "0011"}
        maps = any(re.search(r"\.mlp\.fc1_conv\.weight$", name) and value.ndim == 4 for name, value in state.items())
        return {**published_type("imagenet" if maps else "events", state), "model.pooling": "1111"}

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Backbone.from_published`: a file of any of the three published types, with linear layers, Conv1d or Conv2d.

        Biases of q, k and v do nothing but move the mean of the BatchNorm behind them, where they go. Modules that are never
        used are dropped: LayerNorms and positions.
        """
        theirs = {name: value for name, value in plain_names(state).items() if not re.search(_UNUSED, name)}
        ours: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for name, value in theirs.items():
            module, _, parameter = name.rpartition(".")
            joined = re.fullmatch(r"block\.(\d+)\.attn\.([qkv])_(conv|linear|bn)", module)
            if joined:
                kind = "norm" if joined[3] == "bn" else "conv"
                parts.setdefault(f"blocks.{joined[1]}.attn.qkv", {})[f"{joined[2]}.{kind}.{parameter}"] = value
            elif place := _ours(module):
                pointwise = parameter == "weight" and place.endswith(".0") and value.ndim < 4
                ours[f"{place}.{parameter}"] = value.flatten(1)[..., None, None] if pointwise else value
            else:
                unknown.append(name)
        if unknown:
            raise unplaced(unknown)
        for place, found in parts.items():
            ours |= joined_qkv(place, found)
        return ours

    @classmethod
    def to_published(cls, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """As `Backbone.to_published`, in the type that fits: events; four halvings as for ImageNet; else CIFAR's."""
        layer = "linear" if not config.events and config.pooling != "1111" else "conv"
        theirs: dict[str, Tensor] = {}
        for name, value in state.items():
            module, _, parameter = name.rpartition(".")
            if joined := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.([01])", module):
                kind = (layer, "bn")[int(joined[2])]
                shares = [value] * 3 if parameter == "num_batches_tracked" else value.chunk(3)
                found = {f"block.{joined[1]}.attn.{q}_{kind}.{parameter}": s for q, s in zip("qkv", shares, strict=True)}
            else:
                found = {f"{_theirs(module, layer)}.{parameter}": value}
            for key, tensor in found.items():
                flat = layer == "linear" or config.events or ".attn." in key
                if parameter == "weight" and re.search(r"\.(attn|mlp)\..*_(linear|conv)\.", key) and flat:
                    tensor = tensor.flatten(1) if layer == "linear" else tensor.flatten(2)
                theirs[key] = tensor.clone()
            if joined and layer == "linear" and parameter == "weight" and joined[2] == "0":
                theirs |= {f"block.{joined[1]}.attn.{q}_linear.bias": value.new_zeros(len(value) // 3) for q in "qkv"}
        return theirs

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))


_UNUSED = r"(^|\.)(norm[12]?|pos_embed)(\.|$)"


def _ours(module: str) -> str | None:
    """Our name of a published module that stands for itself."""
    if found := re.fullmatch(r"patch_embed\.proj_(conv|bn)([123]?)", module):
        return f"embed.stages.{found[2] or 0}.{'01'[found[1] == 'bn']}"
    if found := re.fullmatch(r"patch_embed\.rpe_(conv|bn)", module):
        return f"embed.rpe.{'01'[found[1] == 'bn']}"
    if found := re.fullmatch(r"block\.(\d+)\.(attn\.proj|mlp\.fc[12])_(conv|linear|bn)", module):
        return f"blocks.{found[1]}.{found[2]}.{'01'[found[3] == 'bn']}"
    return "head" if module == "head" else None


def _theirs(module: str, layer: str) -> str:
    """The published name of a module of ours; `layer` is what its 1 x 1 convolutions are called."""
    if found := re.fullmatch(r"embed\.(?:stages\.(\d)|rpe)\.([01])", module):
        kind = ("conv", "bn")[int(found[2])]
        return f"patch_embed.rpe_{kind}" if found[1] is None else f"patch_embed.proj_{kind}{found[1].strip('0')}"
    if found := re.fullmatch(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc[12])\.([01])", module):
        return f"block.{found[1]}.{found[2]}_{(layer, 'bn')[int(found[3])]}"
    if module == "head":
        return module
    raise UserError(f"{module}: the published model has no such weight")
