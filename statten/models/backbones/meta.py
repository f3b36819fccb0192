"""Meta-SpikeFormer, the second Spike-driven Transformer (Yao et al., ICLR 2024), with its own attention or STAtten's. Shapes:

    T timesteps   B batch   C channels   D width of a stage   H, W the image or a map

Four convolutional stages halve the map, two stages of transformer blocks follow on one token grid. The residual stream is
real-valued (membrane shortcut), and q, k, v and the projection are convolutions that inference makes one of (`RepConv`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from statten.config import ModelConfig
from statten.config.layouts import meta_widths
from statten.errors import UserError
from statten.models.attention.core import AttentionCore
from statten.models.backbones.base import (
    Backbone,
    Neuron,
    attention_core,
    channel_parts,
    conv_bn,
    convolved,
    drop_rates,
    fired,
    init_weights,
    neurons_at,
    per_frame,
    residual,
    spatial_mean,
)
from statten.models.backbones.sdt import MLP, Block
from statten.models.backbones.weights import axes, plain_names, published_stages, published_type, unplaced
from statten.models.norm import BatchNorm2d
from statten.models.operations import Operation, classifier, conv, depthwise
from statten.neurons import LIF
from statten.registry import ATTENTION

EXPANSION = 2
"""Hidden width of a separable convolution over its own."""
CONVS = (1, 1, 2, 0, 0)
"""Convolutional blocks behind each of the five convolutions that change the width."""
KERNELS, STRIDES = (7, 3, 3, 3, 3), (2, 2, 2, 2, 1)
"""Of those five convolutions."""


class RepConv(nn.Module):
    """A 1 x 1 convolution D -> D, and a separable 3 x 3 one behind it, with a BatchNorm behind each and nothing between.

    The map between the two is padded by what the first makes of zeros, so that both are one dense 3 x 3 convolution with zero
    padding and a bias (`folded`). In training the padding follows the running statistics of the step, and has no gradient.

    Args:
        width: D.
        branches: how many of them read the same map side by side, as q, k and v do; the output has branches D channels.
        backend: implementation of BatchNorm, a key of NEURON_BACKENDS or `auto`.
    """

    def __init__(self, width: int, branches: int, backend: str):
        super().__init__()
        channels = branches * width
        self.enter = nn.Conv2d(width, channels, 1, bias=False)
        self.norm1 = BatchNorm2d(channels, backend)
        self.depthwise = nn.Conv2d(channels, channels, 3, groups=channels, bias=False)
        self.leave = nn.Conv2d(channels, channels, 1, groups=branches, bias=False)
        self.norm2 = BatchNorm2d(channels, backend)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Maps [B, D, H, W] to [B, branches D, H, W]."""
        y = self.norm1(self.enter(x_BDHW))
        border_HW = nn.functional.pad(y.new_zeros(y.shape[-2:]), (1, 1, 1, 1), value=1.0)
        y = nn.functional.pad(y, (1, 1, 1, 1)) + self._image_of_zero()[:, None, None].to(y.dtype) * border_HW
        return self.norm2(self.leave(self.depthwise(y)))

    def folded(self) -> nn.Conv2d:
        """The dense convolution that it is in evaluation mode."""
        W, branches = self.enter.in_channels, self.leave.groups
        scale, offset = self._scale(), self._image_of_zero()
        enter = (self.enter.weight.detach()[:, :, 0, 0] * scale[:, None]).unflatten(0, (branches, W))  # [branch, middle, in]
        middle = self.depthwise.weight.detach()[:, 0].unflatten(0, (branches, W))  # [branch, middle, 3, 3]
        leave = self.leave.weight.detach()[:, :, 0, 0].unflatten(0, (branches, W))  # [branch, out, middle]
        made = nn.Conv2d(W, branches * W, 3, padding=1).to(enter)
        made.weight.data = torch.einsum("nom,nmyx,nmi->noiyx", leave, middle, enter).flatten(0, 1)
        assert made.bias is not None
        made.bias.data = torch.einsum("nom,nmyx,nm->no", leave, middle, offset.unflatten(0, (branches, W))).flatten()
        return fuse_conv_bn_eval(made.eval(), self.norm2.eval())

    def _scale(self) -> Tensor:
        norm = self.norm1
        assert norm.running_var is not None
        return norm.weight.detach() / (norm.running_var + norm.eps).sqrt()

    def _image_of_zero(self) -> Tensor:
        norm = self.norm1
        assert norm.running_mean is not None
        return norm.bias.detach() - norm.running_mean * self._scale()


class Attention(nn.Module):
    """Spikes to q, k and v, an attention core, and a projection back to the stream.

    Args:
        width: D.
        config: the model's part of the config.
        backend: implementation of the neurons.
    """

    def __init__(self, width: int, config: ModelConfig, backend: str):
        super().__init__()
        neuron = neurons_at(config, "attention", backend)
        self.lif, self.q_lif, self.k_lif, self.v_lif = (neuron() for _ in range(4))
        self.qkv = nn.Sequential(RepConv(width, 3, backend), BatchNorm2d(3 * width, backend))
        self.core = attention_core(config, backend)
        self.proj = nn.Sequential(RepConv(width, 1, backend), BatchNorm2d(width, backend))

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to this branch's addition, both [T, B, D, H, W]."""
        q, k, v = channel_parts(per_frame(self.qkv, self.lif(x_TBDHW)), 3)
        return per_frame(self.proj, self.core(self.q_lif(q), self.k_lif(k), self.v_lif(v), None))


def make_block(width: int, config: ModelConfig, backend: str, drop_rate: float) -> Block:
    """A block of one width."""
    mlp = MLP(width, config.mlp_ratio, neurons_at(config, "mlp", backend), backend, shortcut=False)
    return Block(Attention(width, config, backend), mlp, drop_rate)


class ConvBlock(nn.Module):
    """A separable 7 x 7 convolution, and two dense 3 x 3 ones, around the residual stream; every neuron reads real values."""

    def __init__(self, width: int, mlp_ratio: float, neuron: Neuron, backend: str):
        super().__init__()
        wide, hidden = EXPANSION * width, int(width * mlp_ratio)
        self.sep1_lif, self.sep2_lif, self.conv1_lif, self.conv2_lif = (neuron() for _ in range(4))
        self.pw1 = conv_bn(nn.Conv2d(width, wide, 1, bias=False), backend)
        self.dw = nn.Conv2d(wide, wide, 7, padding=3, groups=wide, bias=False)
        self.pw2 = conv_bn(nn.Conv2d(wide, width, 1, bias=False), backend)
        self.conv1 = conv_bn(nn.Conv2d(width, hidden, 3, padding=1, bias=False), backend)
        self.conv2 = conv_bn(nn.Conv2d(hidden, width, 3, padding=1, bias=False), backend)

    def forward(self, x_TBDHW: Tensor, timesteps: int) -> Tensor:
        """Residual stream [T, B, D, H, W], or one frame [1, B, D, H, W] for all T, to the stream [T, B, D, H, W]."""
        wide = fired(self.sep2_lif, self.pw1, self.sep1_lif(x_TBDHW, timesteps))
        x = x_TBDHW + per_frame(self.pw2, per_frame(self.dw, wide))
        return x + per_frame(self.conv2, fired(self.conv2_lif, self.conv1, self.conv1_lif(x)))

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass: each is named after the convolution that reads it."""
        return {"sep1": self.sep1_lif, "sep2": self.sep2_lif, "conv1": self.conv1_lif, "conv2": self.conv2_lif}


class Embed(nn.Module):
    """A convolution to another width, and convolutional blocks behind it.

    Args:
        index: which of the five; the first reads the input, and has no neuron in front.
        inner: channels that it reads.
        width: channels that it makes.
        config: the model's part of the config.
        backend: implementation of the neurons.
    """

    def __init__(self, index: int, inner: int, width: int, config: ModelConfig, backend: str):
        super().__init__()
        neuron, kernel = neurons_at(config, "embed", backend), KERNELS[index]
        self.lif = neuron() if index else None
        self.down = conv_bn(nn.Conv2d(inner, width, kernel, STRIDES[index], kernel // 2), backend)
        self.convs = nn.ModuleList(ConvBlock(width, config.mlp_ratio, neuron, backend) for _ in range(CONVS[index]))

    def forward(self, x_TBCHW: Tensor, timesteps: int) -> Tensor:
        """Residual stream, or the network's input, to the stream [T, B, D, H', W'].

        What one image gives in front of the first neuron is the same at every timestep, and computed once.
        """
        x = residual(convolved(self.down, x_TBCHW if self.lif is None else self.lif(x_TBCHW), timesteps))
        for block in self.convs:
            x = block(x, timesteps)
        return x

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        layers = {} if self.lif is None else {"in": self.lif}
        for c, block in enumerate(self.convs):
            layers |= {f"{c}.{name}": lif for name, lif in cast(ConvBlock, block).spiking_layers().items()}
        return layers


class MetaSpikeFormer(Backbone):
    """Meta-SpikeFormer; arguments as those of `Backbone`."""

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__(config, backend)
        self.embeds = nn.ModuleList(
            Embed(i, inner, width, config, backend) for i, (inner, width) in enumerate(_embedded(config))
        )
        widths = [stage.width for stage in config.stages for _ in range(stage.blocks)]
        self.blocks = nn.ModuleList(
            make_block(width, config, backend, rate) for width, rate in zip(widths, drop_rates(config), strict=True)
        )
        self.last_stage = config.stages[0].blocks
        """The block that the last convolution stands in front of."""
        self.head_lif = neurons_at(config, "head", backend)()
        self.head = nn.Linear(widths[-1], config.num_classes)
        self.apply(init_weights)

    def logits(self, x_TBCHW: Tensor) -> Tensor:
        """As `Backbone.logits`."""
        x = x_TBCHW
        for embed in self.embeds[:-1]:
            x = embed(x, self.timesteps)
        for i, block in enumerate(self.blocks):
            if i == self.last_stage:
                x = self.embeds[-1](x, self.timesteps)
            x = self.run(block, x)
        return self.head(self.head_lif(spatial_mean(x)))

    def spiking_layers(self) -> dict[str, LIF]:
        """As `Backbone.spiking_layers`."""
        *embeds, last = (
            {f"embeds.{i}.{name}": lif for name, lif in cast(Embed, embed).spiking_layers().items()}
            for i, embed in enumerate(self.embeds)
        )
        layers = {name: lif for found in embeds for name, lif in found.items()}
        for i, block in enumerate(self.blocks):
            layers |= last if i == self.last_stage else {}
            layers |= {f"blocks.{i}.{name}": lif for name, lif in cast(Block, block).spiking_layers().items()}
        return {**layers, "head": self.head_lif}

    def attention_cores(self) -> dict[str, AttentionCore]:
        """As `Backbone.attention_cores`."""
        return {f"blocks.{i}.attn": cast(Attention, cast(Block, block).attn).core for i, block in enumerate(self.blocks)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As `Backbone.group_matcher`; the last convolution goes with the block behind it."""
        if coarse:
            return {"stem": r"^embeds\.[0-3]", "blocks": r"^blocks|^embeds\.4"}
        return {"stem": r"^embeds\.[0-3]", "blocks": [(r"^blocks\.(\d+)", None), (r"^embeds\.4", (self.last_stage,))]}

    @classmethod
    def operations(cls, config: ModelConfig) -> Iterator[Operation]:
        """As `Backbone.operations`; a RepConv counts as the dense convolution that inference makes of it.

        The second 1 x 1 convolution of a separable one reads the sums of the first, which are numbers.
        """
        c, core = config, ATTENTION[config.attention]
        side, block, blocks = c.image_size, 0, [0, 0, 0, *(stage.blocks for stage in c.stages)]
        for i, (inner, width) in enumerate(_embedded(c)):
            name = f"embeds.{i}"
            yield conv(f"{name}.down", f"{name}.in" if i else None, inner, width, side, KERNELS[i], STRIDES[i])
            side = -(-side // STRIDES[i])
            for j in range(CONVS[i]):
                yield from _conv_operations(f"{name}.{j}", width, int(width * c.mlp_ratio), side)
            for _ in range(blocks[i]):
                name, hidden = f"blocks.{block}", int(width * c.mlp_ratio)
                yield conv(f"{name}.attn.qkv", f"{name}.attn.in", width, 3 * width, side, kernel=3)
                yield from core.operations(c, name, side**2, width)
                yield conv(f"{name}.attn.proj", f"{name}.attn.mixed", width, width, side, kernel=3, levels=core.levels(c))
                yield conv(f"{name}.mlp.fc1", f"{name}.mlp.fc1", width, hidden, side)
                yield conv(f"{name}.mlp.fc2", f"{name}.mlp.fc2", hidden, width, side)
                block += 1
        yield classifier(width, c.num_classes, "head")

    @classmethod
    def operators(cls, config: ModelConfig) -> list[str]:
        """Attention's."""
        return ATTENTION[config.attention].operators(config)

    published_inputs: ClassVar = ("downsample1_1.encode_conv.weight",)

    @classmethod
    def recognises(cls, state: Mapping[str, Tensor]) -> bool:
        """As `Backbone.recognises`."""
        return any(name.startswith("ConvBlock1_1.") for name in state)

    @classmethod
    def published_shape(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """As `Backbone.published_shape`; widths and depths are told where the rules of the config give others."""
        fields, stages = super().published_shape(state), published_stages(state)
        downs = [f"downsample{name}.encode_conv.weight" for name in ("1_2", "2", "3", "4")]
        if len(stages) != 2 or any(name not in state for name in downs):
            return fields
        widths, depths = tuple(axes(state, name, 4)[0] for name in downs), tuple(blocks for _, _, blocks in stages)
        D = widths[2]
        fields["model.embed_dim"] = D
        if widths != (D // 4, D // 2, D, 5 * D // 4):
            fields["model.stage_dims"] = widths
        if depths[1] != 2:
            fields["model.stage_depths"] = depths
        return fields

    @classmethod
    def published_defaults(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """As `Backbone.published_defaults`: ImageNet's, with 8 heads at every width."""
        return {**published_type("imagenet", state), "model.num_heads": 8}

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Backbone.from_published`; of a network that was distilled, whose logits are the mean of two heads, the two are
        made one."""
        theirs = plain_names(state)
        first = len({name.split(".")[1] for name in theirs if name.startswith("block3.")})
        ours: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for name, value in theirs.items():
            module, _, parameter = name.rpartition(".")
            place, letter = _ours(module, first)
            if place is None:
                unknown.append(name)
            elif letter:
                parts.setdefault(f"{place}.{parameter}", {})[letter] = value
            else:
                ours[f"{place}.{parameter}"] = value[..., None] if value.ndim == 3 else value
        if unknown:
            raise unplaced(unknown)
        for place, found in parts.items():
            if missing := [letter for letter in "qkv" if letter not in found]:
                raise UserError(f"published weights: {place}: {' and '.join(missing)} missing")
            ours[place] = found["q"] if place.endswith("tracked") else torch.cat([found[letter] for letter in "qkv"])
        for parameter in ("weight", "bias"):
            distilled = ours.pop(f"head_kd.{parameter}", None)
            if distilled is not None and f"head.{parameter}" in ours:
                ours[f"head.{parameter}"] = (ours[f"head.{parameter}"] + distilled) / 2
        return ours

    @classmethod
    def to_published(cls, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """As `Backbone.to_published`, with one head."""
        first = config.stages[0].blocks
        theirs: dict[str, Tensor] = {}
        for name, value in state.items():
            module, _, parameter = name.rpartition(".")
            place = _theirs(module, first)
            if "{}" in place:
                shares = [value] * 3 if parameter == "num_batches_tracked" else value.chunk(3)
                theirs |= {f"{place.format(q)}.{parameter}": share.clone() for q, share in zip("qkv", shares, strict=True)}
            else:
                theirs[f"{place}.{parameter}"] = value.flatten(2) if ".mlp." in place and value.ndim == 4 else value
        return theirs


def _embedded(config: ModelConfig) -> list[tuple[int, int]]:
    """Channels in and out of the five convolutions that change the width."""
    widths = meta_widths(config)
    made = [widths[0] // 2, *widths]
    return list(zip([config.in_channels, *made], made, strict=False))


def _conv_operations(name: str, width: int, hidden: int, side: int) -> Iterator[Operation]:
    wide = EXPANSION * width
    yield conv(f"{name}.pw1", f"{name}.sep1", width, wide, side)
    yield depthwise(f"{name}.dw", f"{name}.sep2", wide, side, 7)
    yield conv(f"{name}.pw2", None, wide, width, side)
    yield conv(f"{name}.conv1", f"{name}.conv1", width, hidden, side, kernel=3)
    yield conv(f"{name}.conv2", f"{name}.conv2", hidden, width, side, kernel=3)


# Names: the published ones are on the left; its q, k and v are one RepConv here.
_DOWNS = {"1_1": 0, "1_2": 1, "2": 2, "3": 3, "4": 4}
_CONV_BLOCKS = {"1_1": (0, 0), "1_2": (1, 0), "2_1": (2, 0), "2_2": (2, 1)}
_CONVS = {
    "Conv.pwconv1": "pw1.0", "Conv.bn1": "pw1.1", "Conv.dwconv": "dw", "Conv.pwconv2": "pw2.0", "Conv.bn2": "pw2.1",
    "conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv2.0", "bn2": "conv2.1",
}  # fmt: skip
_REPCONV = {
    "0.body.0": "0.enter", "0.body.1.bn": "0.norm1", "0.body.2.0": "0.depthwise", "0.body.2.1": "0.leave",
    "0.body.2.2": "0.norm2", "1": "1",
}  # fmt: skip


def _ours(module: str, first: int) -> tuple[str | None, str]:
    """Our name of a published module, and which of q, k and v it is; `first` is the number of blocks in front of block4."""
    if found := re.fullmatch(r"downsample(\w+)\.encode_(conv|bn)", module):
        if found[1] in _DOWNS:
            return f"embeds.{_DOWNS[found[1]]}.down.{'01'[found[2] == 'bn']}", ""
    elif found := re.fullmatch(r"ConvBlock(\d_\d)\.0\.([\w.]+)", module):
        if found[1] in _CONV_BLOCKS and found[2] in _CONVS:
            embed, index = _CONV_BLOCKS[found[1]]
            return f"embeds.{embed}.convs.{index}.{_CONVS[found[2]]}", ""
    elif found := re.fullmatch(r"block([34])\.(\d{1,9})\.(\w+)\.([\w.]+)", module):
        block = f"blocks.{int(found[2]) + first * (found[1] == '4')}"
        if found[3] == "mlp" and (layer := re.fullmatch(r"(fc[12])_(conv|bn)", found[4])):
            return f"{block}.mlp.{layer[1]}.{'01'[layer[2] == 'bn']}", ""
        if found[3] == "attn" and (layer := re.fullmatch(r"(q|k|v|proj)_conv\.([\w.]+)", found[4])) and layer[2] in _REPCONV:
            place = "proj" if layer[1] == "proj" else "qkv"
            return f"{block}.attn.{place}.{_REPCONV[layer[2]]}", layer[1] if place == "qkv" else ""
    return (module if module in ("head", "head_kd") else None), ""


def _theirs(module: str, first: int) -> str:
    """The published name of a module of ours, with `{}` where q, k or v stands."""
    if found := re.fullmatch(r"embeds\.(\d)\.down\.([01])", module):
        return f"downsample{_name(_DOWNS, int(found[1]))}.encode_{('conv', 'bn')[int(found[2])]}"
    if found := re.fullmatch(r"embeds\.(\d)\.convs\.(\d)\.([\w.]+)", module):
        return f"ConvBlock{_name(_CONV_BLOCKS, (int(found[1]), int(found[2])))}.0.{_name(_CONVS, found[3])}"
    if found := re.fullmatch(r"blocks\.(\d+)\.(attn|mlp)\.(\w+)\.([\w.]+)", module):
        block = int(found[1])
        prefix = f"block3.{block}" if block < first else f"block4.{block - first}"
        if found[2] == "mlp":
            return f"{prefix}.mlp.{found[3]}_{('conv', 'bn')[int(found[4])]}"
        return f"{prefix}.attn.{'{}' if found[3] == 'qkv' else 'proj'}_conv.{_name(_REPCONV, found[4])}"
    if module == "head":
        return module
    raise UserError(f"{module}: the published model has no such weight")


def _name(names: Mapping[str, Any], ours: Any) -> str:
    """The published name of a part."""
    return next(theirs for theirs, name in names.items() if name == ours)
