"""Networks in stages: Max-Former (NeurIPS 2025), its sibling MS-QKFormer, and QKFormer (Zhou et al., NeurIPS 2024).

Their own attention, or STAtten's, stands in the last stage, and a cheaper mixer of tokens in those before it. Shapes:

    T timesteps   B batch   C input channels   D width of a stage   H, W the image or a stage's token grid

Max-Former's stream is real-valued, as that of the Spike-driven Transformer, whose blocks its last stage has. QKFormer's is a
sum of spikes, as Spikformer's, whose blocks its last stage has; every embedding starts it anew. The published QKFormer mixes
the samples of a batch in the neuron behind the last stage's attention; here every sample stands by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from statten.config import ModelConfig
from statten.config.layouts import Stage
from statten.models.attention.core import AttentionCore
from statten.models.attention.gates import QKGate
from statten.models.backbones import sdt, spikformer
from statten.models.backbones.base import (
    Backbone,
    Values,
    channel_parts,
    conv_bn,
    drop_rates,
    dropped,
    fired,
    init_weights,
    neurons_at,
    per_frame,
    spatial_mean,
)
from statten.models.backbones.embeddings import FIRST, LAST, Embedding, MembraneEmbed, SpikingEmbed, embeddings
from statten.models.backbones.published_stages import MAXFORMER, MS_QKFORMER, QKFORMER, PublishedNames
from statten.models.backbones.weights import published_stages, published_type
from statten.models.operations import Operation, classifier, conv, depthwise
from statten.neurons import LIF
from statten.registry import ATTENTION

DEPTHWISE = {1: ("identity", "dwc3"), 4: ("dwc7", "dwc5"), 8: ("dwc3",)}
"""Max-Former's mixers in front of the last stage, by the stem's stride."""


class DepthwiseConv(nn.Module):
    """A convolution of each channel by itself, behind neurons.

    Args:
        width: D.
        mixer: dwc and the kernel's height and width.
        config: the model's part of the config.
        backend: implementation of the neurons.
    """

    def __init__(self, width: int, mixer: str, config: ModelConfig, backend: str):
        super().__init__()
        kernel = kernel_of(mixer)
        self.lif = neurons_at(config, "attention", backend)()
        self.conv = conv_bn(nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width), backend)

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to this branch's addition, both [T, B, D, H, W]."""
        return per_frame(self.conv, self.lif(x_TBDHW))

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        return {"mix.in": self.lif}


def kernel_of(mixer: str) -> int:
    """The kernel's height and width of a mixer such as dwc7."""
    return int(mixer.removeprefix("dwc"))


class GateAttention(nn.Module):
    """Q-K attention: q and k by one convolution, a gate, and a projection.

    Args:
        width: D.
        mixer: qk_token or qk_channel.
        config: the model's part of the config.
        backend: implementation of the neurons.
        spiking: whether neurons stand behind the projection, and not in front of q and k.
    """

    def __init__(self, width: int, mixer: str, config: ModelConfig, backend: str, spiking: bool):
        super().__init__()
        neuron = neurons_at(config, "attention", backend)
        self.lif = None if spiking else neuron()
        self.qk = conv_bn(nn.Conv2d(width, 2 * width, 1, bias=False), backend)
        self.q_lif, self.k_lif, gate_lif = (neuron() for _ in range(3))
        gate_lif.v_threshold = config.attention_threshold
        self.gate = QKGate(mixer, config.num_heads, gate_lif)
        self.proj = conv_bn(nn.Conv2d(width, width, 1), backend)
        self.proj_lif = neuron() if spiking else None

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to this branch's addition, both [T, B, D, H, W]."""
        q, k = channel_parts(per_frame(self.qk, x_TBDHW if self.lif is None else self.lif(x_TBDHW)), 2)
        mixed = self.gate(self.q_lif(q), self.k_lif(k))
        return per_frame(self.proj, mixed) if self.proj_lif is None else fired(self.proj_lif, self.proj, mixed)

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        layers = {"in": self.lif, "q": self.q_lif, "k": self.k_lif, "gate": self.gate.lif, "proj": self.proj_lif}
        return {f"attn.{name}": lif for name, lif in layers.items() if lif is not None}


class EarlyBlock(nn.Module):
    """A mixer and an MLP around the residual stream, with stochastic depth on both.

    Args:
        mixer: such as GateAttention, or None.
        mlp: the MLP of the network's last stage.
        drop_rate: share of samples whose branch is left out in training.
    """

    def __init__(self, mixer: DepthwiseConv | GateAttention | None, mlp: sdt.MLP | spikformer.MLP, drop_rate: float):
        super().__init__()
        self.mixer, self.mlp, self.drop_rate = mixer, mlp, drop_rate

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream [T, B, D, H, W] to the same."""
        x = x_TBDHW
        if self.mixer is not None:
            x = x + dropped(self.mixer(x), self.drop_rate, self.training)
        return x + dropped(self.mlp(x), self.drop_rate, self.training)

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        return {**(self.mixer.spiking_layers() if self.mixer is not None else {}), **self.mlp.spiking_layers()}

    def streams(self, prefix: str, timesteps: int) -> dict[str, tuple[nn.Module, Values]]:
        """Where convolutions read the stream of a network that adds spikes, as `Backbone.derived_inputs`."""
        read = spikformer.stream_read(timesteps)
        points = {f"{prefix}.mlp.stream": (self.mlp.fc1[0], read)}
        if isinstance(self.mixer, GateAttention):
            points[f"{prefix}.attn.stream"] = (self.mixer.qk[0], read)
        return points


def mixer_of(mixer: str, width: int, config: ModelConfig, backend: str, spiking: bool) -> DepthwiseConv | GateAttention | None:
    """The mixer of a block in front of the last stage; arguments as those of GateAttention."""
    if mixer == "identity":
        return None
    if mixer.startswith("dwc"):
        return DepthwiseConv(width, mixer, config, backend)
    return GateAttention(width, mixer, config, backend, spiking)


def mixer_operations(
    config: ModelConfig, block: str, mixer: str, stage: Stage, point: str = "in", added: int = 1
) -> Iterator[Operation]:
    """The operations of a mixer.

    Args:
        config: the network.
        block: name that layers and points begin with, such as blocks.0.
        mixer: its name.
        stage: the stage that the block stands in.
        point: what q and k read, attn.in or attn.stream.
        added: how many spikes that is the sum of.
    """
    width, side = stage.width, stage.side
    if mixer.startswith("dwc"):
        yield depthwise(f"{block}.mix.conv", f"{block}.mix.in", width, side, kernel_of(mixer))
    elif mixer != "identity":
        yield conv(f"{block}.attn.qk", f"{block}.attn.{point}", width, 2 * width, side, levels=added)
        yield from QKGate.operations(mixer, config.num_heads, block, side**2, width)
        yield conv(f"{block}.attn.proj", f"{block}.attn.mixed", width, width, side)


class MixingLIF(LIF):
    """Neurons that run over timesteps and samples as one sequence, (t, b) in this order: what comes of a sample depends on
    those before it in its batch. For evaluation alone."""

    def forward(self, x_T: Tensor, timesteps: int | None = None, norm: nn.BatchNorm2d | None = None) -> Tensor:
        """As `LIF.forward`, for input [T, B, ...] of all timesteps."""
        assert not self.training, "neurons that mix samples are not for training"
        spikes = super().forward(x_T.flatten(0, 1)[:, None], None, norm)
        return spikes.flatten(0, 1).unflatten(0, x_T.shape[:2])


class Hierarchical(Backbone):
    """Stages of blocks, each behind an embedding; arguments as those of `Backbone`."""

    own_mixer: ClassVar[str]
    """What `early_mixer` is where a config leaves it empty."""
    embed: ClassVar[type[MembraneEmbed] | type[SpikingEmbed]]
    """The kind of its embeddings."""
    names: ClassVar[PublishedNames]
    """What the published code calls its modules."""
    mark: ClassVar[str]
    """A part of published names that no other network has."""
    in_order: ClassVar[bool] = False
    """Whether released files have other names than the code, whose authors load them by order."""
    published_inputs: ClassVar = ("patch_embed1.proj_conv.weight", "patch_embed1.embed1.embed_conv.weight")

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__(config, backend)
        neuron, rates = neurons_at(config, "embed", backend), iter(drop_rates(config))
        self.embeds = nn.ModuleList(self.embed(plan, neuron, backend) for plan in self.embeddings(config))
        self.blocks = nn.ModuleList(
            self.block(config, mixer, stage.width, next(rates), backend)
            for stage, mixer in zip(config.stages, self.mixers(config), strict=True)
            for _ in range(stage.blocks)
        )
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        self.apply(init_weights)

    # What a subclass says.

    @classmethod
    def embeddings(cls, config: ModelConfig) -> list[Embedding]:
        """The plan of each stage's embedding."""
        raise NotImplementedError

    @classmethod
    def block(cls, config: ModelConfig, mixer: str, width: int, drop_rate: float, backend: str) -> nn.Module:
        """A block of a stage: `mixer` is `attention` in the last one."""
        raise NotImplementedError

    @classmethod
    def block_operations(cls, config: ModelConfig, block: str, mixer: str, stage: Stage, added: int) -> Iterator[Operation]:
        """The operations of such a block, whose stream is, if spikes are added, the sum of `added` of them."""
        raise NotImplementedError

    # What all share.

    @classmethod
    def mixers(cls, config: ModelConfig) -> list[str]:
        """What mixes tokens in each stage: identity, dwc3, qk_token, ..., and attention in the last."""
        own = config.early_mixer or cls.own_mixer
        return [*(DEPTHWISE[config.stem] if own == "dwc" else [own] * (len(config.stages) - 1)), "attention"]

    def stream(self, x_TBCHW: Tensor) -> Tensor:
        """The last stage's stream [T, B, D, H, W] of frames, or of an image [1, B, C, H, W] for all T."""
        x = x_TBCHW
        for embed, blocks in self._stages():
            x = embed(x, self.timesteps)
            for block in blocks.values():
                x = self.run(block, x)
        return x

    def _stages(self) -> list[tuple[nn.Module, dict[str, nn.Module]]]:
        """The embedding of each stage, and its blocks by name."""
        blocks = ((f"blocks.{i}", block) for i, block in enumerate(self.blocks))
        return [
            (embed, dict(islice(blocks, stage.blocks))) for embed, stage in zip(self.embeds, self.config.stages, strict=True)
        ]

    def spiking_layers(self) -> dict[str, LIF]:
        """As `Backbone.spiking_layers`."""
        layers: dict[str, LIF] = {}
        for i, (embed, blocks) in enumerate(self._stages()):
            layers |= {f"embeds.{i}.{name}": lif for name, lif in cast(MembraneEmbed, embed).spiking_layers().items()}
            for prefix, block in blocks.items():
                layers |= {f"{prefix}.{name}": lif for name, lif in cast(EarlyBlock, block).spiking_layers().items()}
        return layers

    def attention_cores(self) -> dict[str, AttentionCore]:
        """As `Backbone.attention_cores`: those of the last stage."""
        blocks = {f"blocks.{i}.attn": block for i, block in enumerate(self.blocks) if not isinstance(block, EarlyBlock)}
        return {prefix: cast(sdt.Attention, cast(sdt.Block, block).attn).core for prefix, block in blocks.items()}

    def derived_inputs(self) -> dict[str, tuple[nn.Module, Values]]:
        """blocks.0.attn.mixed: what the projection behind a gate reads."""
        return {
            f"blocks.{i}.attn.mixed": (block.mixer.gate, lambda _, output: output)
            for i, block in enumerate(self.blocks)
            if isinstance(block, EarlyBlock) and isinstance(block.mixer, GateAttention)
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As `Backbone.group_matcher`; an embedding behind a stage belongs to the block that follows it."""
        blocks: list[tuple[str, tuple[int] | None]] = [(r"^blocks" if coarse else r"^blocks\.(\d+)", None)]
        first = 0
        for i, stage in enumerate(self.config.stages):
            if i:
                blocks.append((rf"^embeds\.{i}\.", None if coarse else (first,)))
            first += stage.blocks
        return {"stem": r"^embeds\.0\.", "blocks": blocks}

    @classmethod
    def operations(cls, config: ModelConfig) -> Iterator[Operation]:
        """As `Backbone.operations`."""
        block, added = 0, 0
        plans = zip(cls.embeddings(config), config.stages, cls.mixers(config), strict=True)
        for i, (plan, stage, mixer) in enumerate(plans):
            yield from cls.embed.operations(plan, f"embeds.{i}", added)
            added = 2
            for _ in range(stage.blocks):
                yield from cls.block_operations(config, f"blocks.{block}", mixer, stage, added)
                block, added = block + 1, added + (1 if mixer == "identity" else 2)

    @classmethod
    def operators(cls, config: ModelConfig) -> list[str]:
        """Attention's, the gates', and max-pooling."""
        plans, mixers = cls.embeddings(config), cls.mixers(config)
        gates = ["the elementwise product of two signals (the gate of Q-K attention)"] * any(m.startswith("qk") for m in mixers)
        pools = [f"embeds.{i}.pools.{j}" for i, plan in enumerate(plans) for j, step in enumerate(plan.steps) if step.pool]
        pools += [f"embeds.{i}.short_pool" for i, plan in enumerate(plans) if plan.short.pool]
        return ATTENTION[config.attention].operators(config) + gates + [f"max_pool2d ({', '.join(pools)})"] * bool(pools)

    @classmethod
    def recognises(cls, state: Mapping[str, Tensor]) -> bool:
        """As `Backbone.recognises`."""
        return any(cls.mark in name for name in state)

    @classmethod
    def published_shape(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """As `Backbone.published_shape`; widths and depths are told where the rules of the config give others."""
        fields, stages, stem = super().published_shape(state), published_stages(state), cls.names.stem(state)
        fields["model.stem_stride"] = stem
        widths, depths = tuple(width for width, _, _ in stages), tuple(blocks for _, _, blocks in stages)
        if widths != tuple(widths[-1] // 2**i for i in reversed(range(len(widths)))):
            fields["model.stage_dims"] = widths
        if depths[:-1] != ((1, 2) if stem == 4 else (1,) * (len(depths) - 1)):
            fields["model.stage_depths"] = depths
        return fields

    @classmethod
    def published_defaults(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """As `Backbone.published_defaults`: the stem tells the type."""
        return published_type({1: "cifar", 4: "imagenet", 8: "events"}[cls.names.stem(state)], state)

    @classmethod
    def published_in_order(cls, backbone: str, shapes: Sequence[torch.Size]) -> Iterator[dict[str, torch.Size]]:
        """As `Backbone.published_in_order`: the first weight tells the channels, the last but one width and classes, and the
        first of the last MLP, 16 before the end, its hidden width."""
        if not cls.in_order or len(shapes) < 16:
            return
        first, mlp, head = shapes[0], shapes[-16], shapes[-2]
        if (len(first), len(mlp), len(head)) != (4, 4, 2) or 0 in (*first, *mlp, *head):
            return
        channels, hidden, (classes, width) = first[1], mlp[0], head
        fields = {"in_channels": channels, "embed_dim": width, "mlp_ratio": hidden / width, "num_classes": classes}
        for stem, least, last in ((4, 4, "stage3.0."), (1, 3, "stage3.0."), (8, 2, "stage2.0.")):
            try:
                config = ModelConfig(
                    backbone=backbone, attention="ssa", block_size=1, num_heads=1, stem_stride=stem, depth=least, **fields
                )
            except ValueError:  # no such network can be
                continue
            found = cls._published_shapes(config)
            more, rest = divmod(len(shapes) - len(found), sum(name.startswith(last) for name in found))
            if more >= 0 and rest == 0:
                yield cls._published_shapes(config.model_copy(update={"depth": least + more}))

    @classmethod
    def _published_shapes(cls, config: ModelConfig) -> dict[str, torch.Size]:
        with torch.device("meta"):
            state = cls(config, "torch").state_dict()
            return {name: value.shape for name, value in cls.to_published(state, config).items()}

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Backbone.from_published`: a file of any of the published types, which is told by its names."""
        return cls.names.to_ours(state)

    @classmethod
    def to_published(cls, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """As `Backbone.to_published`, in the type of the config's stem, and in the order of that type's modules."""
        return cls.names.to_theirs(state, config.stem, [stage.blocks for stage in config.stages])


class MaxFormer(Hierarchical):
    """Max-Former: depth-wise convolutions in front of the last stage, whose blocks are the Spike-driven Transformer's."""

    own_mixer, embed, names = "dwc", MembraneEmbed, MAXFORMER
    mark, in_order = ".mixer.", True

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__(config, backend)
        self.head_lif = neurons_at(config, "head", backend)()

    @classmethod
    def embeddings(cls, config: ModelConfig) -> list[Embedding]:
        """As `Hierarchical.embeddings`."""
        return embeddings(config, FIRST, strided_stem=True, pooled_branch=True)

    @classmethod
    def block(cls, config: ModelConfig, mixer: str, width: int, drop_rate: float, backend: str) -> nn.Module:
        """As `Hierarchical.block`."""
        if mixer == "attention":
            return sdt.make_block(config, backend, drop_rate)
        mlp = sdt.MLP(width, config.mlp_ratio, neurons_at(config, "mlp", backend), backend)
        return EarlyBlock(mixer_of(mixer, width, config, backend, spiking=False), mlp, drop_rate)

    @classmethod
    def block_operations(cls, config: ModelConfig, block: str, mixer: str, stage: Stage, added: int) -> Iterator[Operation]:
        """As `Hierarchical.block_operations`."""
        if mixer == "attention":
            yield from sdt.block_operations(config, block, stage.width, stage.side)
        else:
            yield from mixer_operations(config, block, mixer, stage)
            yield from sdt.mlp_operations(config, block, stage.width, stage.side)

    def logits(self, x_TBCHW: Tensor) -> Tensor:
        """As `Backbone.logits`."""
        return self.head(self.head_lif(spatial_mean(self.stream(x_TBCHW))))

    def spiking_layers(self) -> dict[str, LIF]:
        """As `Backbone.spiking_layers`."""
        return {**super().spiking_layers(), "head": self.head_lif}

    @classmethod
    def operations(cls, config: ModelConfig) -> Iterator[Operation]:
        """As `Backbone.operations`."""
        yield from super().operations(config)
        yield classifier(config.embed_dim, config.num_classes, "head")


class MSQKFormer(MaxFormer):
    """MS-QKFormer, a Max-Former with the embeddings and the Q-K gates of QKFormer."""

    own_mixer, names, mark = "qk_token", MS_QKFORMER, "stage1.0.attn.q_conv."

    @classmethod
    def embeddings(cls, config: ModelConfig) -> list[Embedding]:
        """As `Hierarchical.embeddings`."""
        return QKFormer.embeddings(config)


class QKFormer(Hierarchical):
    """QKFormer: Q-K gates in front of the last stage, whose blocks are Spikformer's."""

    own_mixer, embed, names = "qk_token", SpikingEmbed, QKFORMER
    mark = ".tssa."
    published_mixes = True
    published_note = (
        "the published code of QKFormer mixes the samples of a batch (public issue 14), and its published accuracies are of "
        "that network; here every sample stands by itself, and --as-published evaluates the mixing one for comparison"
    )

    @classmethod
    def embeddings(cls, config: ModelConfig) -> list[Embedding]:
        """As `Hierarchical.embeddings`."""
        return embeddings(config, FIRST if config.stem == 4 else LAST)

    @classmethod
    def block(cls, config: ModelConfig, mixer: str, width: int, drop_rate: float, backend: str) -> nn.Module:
        """As `Hierarchical.block`."""
        if mixer == "attention":
            return spikformer.Block(spikformer.Attention(width, config, backend), width, config, backend, drop_rate)
        mlp = spikformer.MLP(width, config, backend)
        return EarlyBlock(mixer_of(mixer, width, config, backend, spiking=True), mlp, drop_rate)

    @classmethod
    def block_operations(cls, config: ModelConfig, block: str, mixer: str, stage: Stage, added: int) -> Iterator[Operation]:
        """As `Hierarchical.block_operations`."""
        if mixer == "attention":
            yield from spikformer.block_operations(config, block, stage.width, stage.side, added)
        else:
            yield from mixer_operations(config, block, mixer, stage, "stream", added)
            added += mixer != "identity"
            yield from spikformer.mlp_operations(config, block, stage.width, stage.side, added)

    def logits(self, x_TBCHW: Tensor) -> Tensor:
        """As `Backbone.logits`."""
        return self.head(spatial_mean(self.stream(x_TBCHW)))

    def mix_samples(self) -> None:
        """As `Backbone.mix_samples`: the neurons behind the last stage's attention mix them."""
        for block in self.blocks:
            if isinstance(block, spikformer.Block):
                attn = cast(spikformer.Attention, block.attn)
                lif = attn.proj_lif
                attn.proj_lif = MixingLIF(lif.v_threshold, lif.tau, lif.alpha, backend=lif.backend)
        self.eval()

    def derived_inputs(self) -> dict[str, tuple[nn.Module, Values]]:
        """As those of Hierarchical, and where convolutions read the stream: embeds.1.stream, blocks.0.attn.stream, and
        blocks.0.mlp.stream."""
        read = spikformer.stream_read(self.timesteps)
        points = super().derived_inputs()
        for i, embed in enumerate(cast(list[SpikingEmbed], list(self.embeds))):
            if i:
                points[f"embeds.{i}.stream"] = (cast(nn.Sequential, embed.convs[0])[0], read)
        for i, block in enumerate(self.blocks):
            points |= cast(EarlyBlock, block).streams(f"blocks.{i}", self.timesteps)
        return points

    @classmethod
    def operations(cls, config: ModelConfig) -> Iterator[Operation]:
        """As `Backbone.operations`."""
        yield from super().operations(config)
        yield classifier(config.embed_dim, config.num_classes, None, once=not config.per_timestep_logits)
