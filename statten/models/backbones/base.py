"""What a backbone is: one file with a subclass of `Backbone`, and one line of `statten.registry`.

Whoever needs to know a network - energy ledger, spike meter, reports, search, exports, import of published weights - asks its
class or its instance here, and knows none by heart. Shapes:

    T timesteps   B batch   C input channels   D embedding   K classes   H, W the image or a map
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from statten.config import ModelConfig
from statten.errors import UserError
from statten.models.attention.core import AttentionCore
from statten.models.backbones.weights import axes, published_stages
from statten.models.memory import checkpointed
from statten.models.norm import BatchNorm2d
from statten.models.operations import Operation
from statten.neurons import LIF, PLIF
from statten.registry import ATTENTION

Values = Callable[[tuple[Any, ...], Tensor], Tensor]
"""What is measured at a module, [T, B, ...], from its inputs and its output."""
Neuron = Callable[[], LIF]
"""Makes a layer of neurons of one place of a network."""


class Backbone(nn.Module):
    """Images [B, C, H, W], repeated T times, or event clips [B, T, C, H, W] to logits.

    Args:
        config: the model's part of the config.
        backend: implementation of the neurons that a subclass makes, a key of NEURON_BACKENDS or `auto`.
    """

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        self.config = config
        self.timesteps = config.timesteps
        self.activation_checkpointing = False
        """Whether blocks keep their input alone, and run again in the backward pass."""

    # What a subclass has.

    def logits(self, x_TBCHW: Tensor) -> Tensor:
        """Logits [T, B, K] of frames [T, B, C, H, W], or of an image [1, B, C, H, W] for all T."""
        raise NotImplementedError

    def spiking_layers(self) -> dict[str, LIF]:
        """Every layer of neurons by name, in the order of the forward pass."""
        raise NotImplementedError

    @classmethod
    def operations(cls, config: ModelConfig) -> Iterator[Operation]:
        """The convolutions and products of one timestep, in the order of the forward pass: rows of the energy ledger."""
        raise NotImplementedError

    # What it may have.

    def attention_cores(self) -> dict[str, AttentionCore]:
        """Attention cores by the name that their points begin with, such as blocks.0.attn."""
        return {}

    def derived_inputs(self) -> dict[str, tuple[nn.Module, Values]]:
        """Where operations read something else than a layer's own spikes: modules with what is read there, by point."""
        return {}

    def conv_norms(self) -> Iterator[nn.Sequential]:
        """Pairs of a convolution and its BatchNorm, of which inference may make one convolution."""
        for module in self.modules():
            if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[0], nn.Conv2d):
                yield module

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters form a layer, in timm's form."""
        return {"stem": r"^embed", "blocks": r"^blocks" if coarse else r"^blocks\.(\d+)"}

    @classmethod
    def dense_operations(cls, config: ModelConfig) -> Iterator[Operation]:
        """The operations of a network of the same layers and widths that computes with numbers: without products of spikes, but
        in each block with `attn.qkv` the products Q K^T (scores) and softmax(Q K^T) V (mix) behind it."""
        for operation in cls.operations(config):
            if operation.kind not in ("product", "gate"):
                yield operation
            if operation.layer.endswith("attn.qkv"):
                block, values = operation.layer.removesuffix(".qkv"), operation.outputs // 3
                tokens = values * operation.kernel**2 * values // (operation.flops // 3)
                for name in ("scores", "mix"):
                    yield Operation(
                        f"{block}.{name}", "product", None, tokens * values, 0, 2 * values, config.num_heads * tokens**2
                    )

    @classmethod
    def activations(cls, config: ModelConfig) -> int:
        """A number that grows with what a sample's forward pass keeps: by it a space's smallest and largest trial are found."""
        return config.timesteps * sum(operation.outputs for operation in cls.operations(config))

    @classmethod
    def operators(cls, config: ModelConfig) -> list[str]:
        """What it needs beside convolutions, neurons and sums, in words: exporters may lack it."""
        return []

    sliced: ClassVar[Mapping[str, int] | None] = None
    """Of a backbone whose smaller networks may be cut out of a larger one's weights, first channels and first blocks: into how
    many parts the outputs of a layer fall, by a piece of its name, such as {".attn.qkv.": 3}; see models/slices.py."""
    published_note: ClassVar[str] = ""
    """What whoever uses published weights of it should know."""
    published_mixes: ClassVar[bool] = False
    """Whether the published code mixes the samples of a batch, which networks here never do."""
    published_inputs: ClassVar[tuple[str, ...]] = ("patch_embed.proj_conv.weight",)
    """Published names of the convolution that reads the input, the first that is there."""

    @classmethod
    def recognises(cls, state: Mapping[str, Tensor]) -> bool:
        """Whether a state_dict has the published names of this network, and of no other."""
        return False

    @classmethod
    def published_shape(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fields of the model that published weights tell by their names and shapes; raises UserError."""
        fields: dict[str, Any] = {}
        if "head.weight" in state:
            fields["model.num_classes"] = axes(state, "head.weight", 2)[0]
        if inputs := next((name for name in cls.published_inputs if name in state), None):
            fields["model.in_channels"] = axes(state, inputs, 4)[1]
        if stages := published_stages(state):
            width, hidden, _ = stages[-1]
            fields |= {"model.embed_dim": width, "model.mlp_ratio": hidden / width}
            fields["model.depth"] = sum(blocks for _, _, blocks in stages)
        return fields

    @classmethod
    def published_defaults(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fields of the model that published weights do not tell, as they are in the published type that has such names."""
        return {}

    @classmethod
    def published_in_order(cls, backbone: str, shapes: Sequence[torch.Size]) -> Iterator[dict[str, torch.Size]]:
        """The weights, by published name and in the order of a file, of networks that a file with weights of these shapes may
        hold; nothing where the authors load their files by name."""
        yield from ()

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state_dict as one of ours; raises UserError."""
        raise UserError(f"published weights: there is no published form of {cls.__name__}")

    @classmethod
    def to_published(cls, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """The state_dict of a config's network under the published names; raises UserError."""
        raise UserError(f"published weights: there is no published form of {cls.__name__}")

    def mix_samples(self) -> None:
        """Become, for evaluation alone, the network of published code that mixes the samples of a batch."""
        raise NotImplementedError

    # What all share.

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K], the mean over timesteps, or [T, B, K] with `per_timestep_logits`.

        Raises:
            ValueError: x has another shape than the config says.
        """
        self._check(x)
        logits_TBK = self.logits(x.transpose(0, 1) if self.config.events else x.unsqueeze(0))
        return logits_TBK if self.config.per_timestep_logits else logits_TBK.mean(0)

    def set_timesteps(self, timesteps: int, block_size: int) -> None:
        """Change T and b: they own no weights. Raises ValueError when b is above T."""
        if not 1 <= block_size <= timesteps:
            raise ValueError(
                f"`block_size` must be between 1 and `timesteps`, but got (block_size={block_size}, timesteps={timesteps})"
            )
        self.timesteps = timesteps
        for core in self.attention_cores().values():
            core.set_block_size(block_size)

    def run(self, block: nn.Module, x_TBDHW: Tensor) -> Tensor:
        """A block's output; with `activation_checkpointing` the block keeps its input alone, and runs again backwards."""
        checkpointing = self.activation_checkpointing and torch.is_grad_enabled()
        return checkpointed(block, x_TBDHW) if checkpointing else block(x_TBDHW)

    def _check(self, x: Tensor) -> None:
        c = self.config
        frame = (c.in_channels, c.image_size, c.image_size)
        wanted = (self.timesteps, *frame) if c.events else frame
        if tuple(x.shape[1:]) != wanted:
            axes = "[B, T, C, H, W]" if c.events else "[B, C, H, W]"
            raise ValueError(f"input must be {axes} = [B, {', '.join(map(str, wanted))}], but got {list(x.shape)}")


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights with standard deviation 0.02 and biases 0; BatchNorm keeps PyTorch's."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        # As timm, and PyTorch up to 2.11, draw them: newer ones draw other numbers.
        with torch.no_grad():
            module.weight.uniform_(-1, 1).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-2, 2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def per_frame(module: nn.Module, x_TBCHW: Tensor) -> Tensor:
    """Apply a module for [B, C, H, W] to all timesteps at once."""
    return module(x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])


def channel_parts(x_TBCHW: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Equal parts of the channels; in channels-last, where a chunk of axis 2 would give its gradient the default layout."""
    return tuple(part.movedim(-1, 2) for part in x_TBCHW.movedim(2, -1).chunk(parts, dim=-1))


def spatial_mean(x_TBCHW: Tensor) -> Tensor:
    """The mean of each map, [T, B, C]; its gradient is in channels-last, for the layers in front to find it so."""
    return x_TBCHW.movedim(2, -1).mean((2, 3))


def conv_bn(conv: nn.Conv2d, backend: str) -> nn.Sequential:
    """A convolution and its BatchNorm."""
    return nn.Sequential(conv, BatchNorm2d(conv.out_channels, backend))


def neurons_at(config: ModelConfig, place: str, backend: str) -> Neuron:
    """What makes the neurons of a place (embed, attention, mlp, head)."""
    kind = PLIF if config.neuron_at(place) == "plif" else LIF  # type: ignore[arg-type]
    return lambda: kind(config.v_threshold, config.tau, config.surrogate_alpha, backend=backend)


def attention_core(config: ModelConfig, backend: str) -> AttentionCore:
    """The core of a config's attention mode."""
    kind = PLIF if config.neuron_at("attention") == "plif" else LIF
    return ATTENTION[config.attention](config, kind, backend)


def drop_rates(config: ModelConfig) -> list[float]:
    """Stochastic depth of each block, rising linearly from 0 to `drop_path`."""
    return torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()


def dropped(branch_TBDHW: Tensor, rate: float, training: bool) -> Tensor:
    """A branch with stochastic depth: in training a sample is left out whole, with all its timesteps."""
    if not (training and rate):
        return branch_TBDHW
    kept_B = branch_TBDHW.new_empty(branch_TBDHW.shape[1]).bernoulli_(1 - rate).div_(1 - rate)
    return branch_TBDHW * kept_B.view(1, -1, 1, 1, 1)


def convolved(pair: nn.Module, x_TBCHW: Tensor, timesteps: int) -> Tensor:
    """Frames through a convolution and its BatchNorm; one frame is computed once, and counts for all T in the statistics."""
    conv, norm = cast(nn.Sequential, pair)
    x = conv(x_TBCHW.flatten(0, 1))
    repeats = timesteps // len(x_TBCHW)
    x = norm(x, repeats) if isinstance(norm, BatchNorm2d) and repeats > 1 else norm(x)
    return x.unflatten(0, x_TBCHW.shape[:2])


def fired(lif: LIF, pair: nn.Module, x_TBCHW: Tensor, timesteps: int | None = None) -> Tensor:
    """Frames through a convolution, its BatchNorm and neurons, the latter two in one kernel: spikes [T, B, ...]."""
    conv, norm = cast(nn.Sequential, pair)
    return lif(per_frame(conv, x_TBCHW), timesteps, norm)


def residual(x: Tensor) -> Tensor:
    """The start of a residual stream, which is float32 under mixed precision."""
    return x if x.dtype == torch.float64 else x.float()
