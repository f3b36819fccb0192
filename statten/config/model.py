"""The fields of the network, and the rules between them."""

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, model_validator

from statten.config.layouts import LAYOUTS, Layout, Stage
from statten.config.parts import Float, Int, Part
from statten.errors import ConfigError, shown
from statten.registry import ATTENTION, BACKBONES, OPTIONAL_FIELDS

if TYPE_CHECKING:
    AttentionMode = str
    BackboneName = str
else:  # what can be chosen is what is registered
    AttentionMode, BackboneName = (Literal[tuple(entries)] for entries in (ATTENTION, BACKBONES))
NeuronKind = Literal["lif", "plif"]


class NeuronMap(Part):
    """The neuron of each place of the network; `{mlp: plif, head: plif}` is what the published code calls PLIF."""

    embed: NeuronKind = "lif"
    """Neurons of the patch embedding."""
    attention: NeuronKind = "lif"
    """Neurons of the attention, those after q, k and v included."""
    mlp: NeuronKind = "lif"
    """Neurons of the MLP."""
    head: NeuronKind = "lif"
    """Neuron in front of the classifier."""


class ModelConfig(Part):
    """A spiking transformer: a backbone with STAtten's (Lee et al., CVPR 2025), or its own, attention in it."""

    backbone: BackboneName = "sdt"
    """Network around the attention: `sdt` (Spike-driven Transformer, NeurIPS 2023), `spikformer` (ICLR 2023), `maxformer`
    (Max-Former, NeurIPS 2025) and its sibling `ms_qkformer`, `qkformer` (NeurIPS 2024),
    `sdt2` (Meta-SpikeFormer, ICLR 2024)."""
    attention: AttentionMode = "statten"
    """`statten`: block-wise spatial-temporal attention; `sdsa`: the spatial attention of `sdt`; `ssa`: that of the others."""
    timesteps: Int = Field(4, ge=1, le=64)
    """Timesteps T. T owns no parameters: one set of weights runs at every T."""
    block_size: Int = Field(2, ge=1, le=64)
    """Timesteps b that attend together, at most T; 1 is spatial attention, T is full spatial-temporal attention."""
    depth: Int = Field(2, ge=1, le=48)
    """Number of transformer blocks."""
    embed_dim: Int = Field(256, ge=8, le=4096)
    """Embedding dimension D, a multiple of 8 and of `num_heads`."""
    num_heads: Int = Field(8, ge=1)
    """Attention heads."""
    mlp_ratio: Float = Field(4.0, gt=0, le=16)
    """Hidden width of the MLP over D."""
    attention_scale: Float | None = Field(None, gt=0, le=1024)
    """What the counts of attention are multiplied by before they meet `attention_threshold`; on event clips it is divided by b.
    Empty means the backbone's own: 0.125, or 0.25 for `spikformer` on event clips. `sdt` takes 1/H of its token grid."""
    early_mixer: Literal["qk_token", "qk_channel", "dwc", "identity"] | None = None
    """What mixes tokens in front of the last stage: the Q-K gate over heads (`qk_token`) or channels (`qk_channel`),
    Max-Former's depth-wise convolutions (`dwc`), or nothing. Empty means the backbone's own: `dwc` for `maxformer`,
    else `qk_token`."""
    stem_stride: Literal[1, 4, 8] | None = None
    """How far the stem of a backbone with stages shrinks the map: 1 (three stages, as for CIFAR), 4 (three, as for ImageNet)
    or 8 (two, as for event clips). Empty means 8 for event clips, else 1."""
    stage_depths: tuple[Int, ...] | None = Field(None, min_length=1, max_length=8)
    """Blocks of each stage, whose sum is `depth`; empty divides `depth` as the published networks do."""
    stage_dims: tuple[Int, ...] | None = Field(None, min_length=1, max_length=8)
    """Width of each stage; empty derives them from `embed_dim` as the published networks do."""
    pooling: str = Field("0011", pattern=r"^[01]{4}$")
    """One digit per embedding stage: 1 halves the feature map there."""
    in_channels: Int = Field(3, ge=1)
    """Input channels C."""
    num_classes: Int = Field(10, ge=2)
    """Classes of the label."""
    image_size: Int = Field(32, ge=4, le=1024)
    """Height and width of the input, in pixels."""
    events: bool = False
    """Event mode: clips [B, T, C, H, W], pooled spikes, masked attention. Otherwise images [B, C, H, W], repeated T times."""
    neuron: NeuronKind | NeuronMap = "lif"
    """`lif`, `plif` (learned membrane time constant) or a mapping of places (embed, attention, mlp, head) to one of them."""
    tau: Float = Field(2.0, gt=1, le=100)
    """Membrane time constant, in timesteps; PLIF starts from it."""
    v_threshold: Float = Field(1.0, gt=0)
    """Firing threshold."""
    attention_threshold: Float = Field(0.5, gt=0)
    """Firing threshold of the neuron inside attention."""
    surrogate_alpha: Float = Field(4.0, gt=0)
    """Steepness of the sigmoid surrogate gradient."""
    drop_path: Float = Field(0.0, ge=0, lt=1)
    """Stochastic depth: rate at the last block, rising linearly from 0 at the first."""
    per_timestep_logits: bool = False
    """Return logits [T, B, classes] instead of their mean over T (needed by the TET loss)."""

    @property
    def stages(self) -> list[Stage]:
        """The stages of transformer blocks; one, where width and token grid stay the same."""
        return self._layout.stages(self)

    @property
    def tokens_per_side(self) -> int:
        """Height and width of the last stage's token grid."""
        return self.stages[-1].side

    @property
    def stem(self) -> int:
        """The stem's stride in force, of a backbone with stages."""
        return self.stem_stride or (8 if self.events else 1)

    @property
    def masked(self) -> bool:
        """Whether attention is masked by the block's own pooled input."""
        return self.events and BACKBONES.line(self.backbone).event_mask

    @property
    def inverse_scale(self) -> Fraction:
        """One over the scale of attention's counts; on event clips it is to be multiplied by the timesteps of a block."""
        network = BACKBONES.line(self.backbone)
        scale = self.attention_scale or (network.event_scale if self.events else None) or network.scale
        if scale is None:
            return Fraction(self.tokens_per_side ** (2 if self.events else 1))
        return 1 / Fraction(scale)

    @property
    def _layout(self) -> Layout:
        return LAYOUTS[BACKBONES.line(self.backbone).layout]

    def neuron_at(self, place: Literal["embed", "attention", "mlp", "head"]) -> NeuronKind:
        """Kind of the neuron at a place of the network."""
        return self.neuron if isinstance(self.neuron, str) else getattr(self.neuron, place)

    @model_validator(mode="after")
    def _rules(self) -> "ModelConfig":
        problems = []
        if self.block_size > self.timesteps:
            problems.append(
                f"`block_size` must be at most `timesteps`, but got "
                f"(block_size={self.block_size}, timesteps={self.timesteps}); the nearest is {self.timesteps}"
            )
        problems += self._layout.problems(self)
        problems += self._elsewhere()
        if problems:
            raise ConfigError(problems)
        return self

    def _elsewhere(self) -> Iterator[str]:
        """A sentence for every value that the backbone does not have."""
        network = BACKBONES.line(self.backbone)
        for field, lacking in network.lacks.items():
            if (value := getattr(self, field)) in lacking:
                kind = type(self).model_fields[field].annotation
                choices = [name for name in _choices(kind) if name not in lacking]
                yield f"`{field}` must be one of {', '.join(choices)} for {self.backbone}, but got {value}"
        for field in OPTIONAL_FIELDS:
            if field in network.fields:
                continue
            if field == "neuron.head":
                value, default = not isinstance(self.neuron, str) and self.neuron.head, "lif"
                idle = value == "plif"
            else:
                value, default = getattr(self, field), type(self).model_fields[field].default
                idle = value != default
            if idle:
                unset = "leave it out" if default is None else f"leave it out, or at {default!r}"
                yield f"`{field}` has no effect on {self.backbone}, but got {shown(value)}; {unset}"


def _choices(kind: Any) -> Iterator[str]:
    """The names that a field takes."""
    for part in get_args(kind):
        yield from _choices(part) if get_args(part) else [part] if isinstance(part, str) else []
