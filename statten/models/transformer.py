"""The STAtten transformer (Lee et al., CVPR 2025) on the Spike-driven Transformer (Yao et al., NeurIPS 2023). Shapes:

    T timesteps   B batch   C input channels   D embedding   H, W the image or the token grid

The residual stream is real-valued (membrane shortcut): every branch starts with a neuron and ends with a BatchNorm, and there
is no LayerNorm. Forward returns logits only; hooks on `spiking_layers()` see the spikes.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
from timm.layers import drop_path
from torch import Tensor, nn

from statten.config import ModelConfig
from statten.models.attention import ATTENTION, FramePool
from statten.models.memory import MaxPool, checkpointed
from statten.models.norm import BatchNorm2d
from statten.neurons import LIF, PLIF

Neuron = Callable[..., LIF]


def per_frame(module: nn.Module, x_TBCHW: Tensor) -> Tensor:
    """Apply a module for [B, C, H, W] to all timesteps at once."""
    return module(x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])


def conv_bn(conv: nn.Conv2d, backend: str) -> nn.Sequential:
    """A convolution and its BatchNorm."""
    return nn.Sequential(conv, BatchNorm2d(conv.out_channels, backend))


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
            conv, norm = cast(nn.Sequential, stage)
            x = per_frame(pool, lif(per_frame(conv, x), timesteps, norm))
        shortcut = per_frame(self.pools[3], per_frame(self.stages[3], x))
        return _stream(shortcut) + per_frame(self.rpe, self.lifs[3](shortcut))


class Attention(nn.Module):
    """Spikes to q, k and v by one convolution, an attention core, and a projection back to the stream."""

    def __init__(self, config: ModelConfig, neuron: Neuron, backend: str):
        super().__init__()
        D = config.embed_dim
        kind = PLIF if config.neuron_at("attention") == "plif" else LIF
        self.lif, self.q_lif, self.k_lif, self.v_lif = (neuron() for _ in range(4))
        self.qkv = conv_bn(nn.Conv2d(D, 3 * D, 1, bias=False), backend)
        self.pool = FramePool() if config.events else None
        self.core = ATTENTION[config.attention](config, kind, backend)
        self.proj = conv_bn(nn.Conv2d(D, D, 1), backend)

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to this branch's addition, both [T, B, D, H, W]."""
        s = self.lif(x_TBDHW)
        q, k, v = per_frame(self.qkv, s).chunk(3, dim=2)
        q, k, v, mask = self.q_lif(q), self.k_lif(k), self.v_lif(v), None
        if self.pool is not None:
            q, k, v, mask = (self.pool(spikes) for spikes in (q, k, v, s))
        return per_frame(self.proj, self.core(q, k, v, mask))


class MLP(nn.Module):
    """Two 1 x 1 convolutions, each behind a neuron."""

    def __init__(self, config: ModelConfig, neuron: Neuron, backend: str):
        super().__init__()
        D, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.lif1, self.lif2 = neuron(), neuron()
        self.fc1 = conv_bn(nn.Conv2d(D, hidden, 1), backend)
        self.fc2 = conv_bn(nn.Conv2d(hidden, D, 1), backend)
        self.inner_shortcut = hidden == D

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream to this branch's addition, both [T, B, D, H, W]."""
        spikes = self.lif1(x_TBDHW)
        if self.inner_shortcut:
            hidden = per_frame(self.fc1, spikes)
            return hidden + per_frame(self.fc2, self.lif2(x_TBDHW + hidden))
        conv, norm = self.fc1
        return per_frame(self.fc2, self.lif2(per_frame(conv, spikes), norm=norm))


class Block(nn.Module):
    """Attention and MLP around the residual stream, with stochastic depth on both."""

    def __init__(self, config: ModelConfig, make_neuron: Callable[[str], Neuron], backend: str, drop_rate: float):
        super().__init__()
        self.attn = Attention(config, make_neuron("attention"), backend)
        self.mlp = MLP(config, make_neuron("mlp"), backend)
        self.drop_rate = drop_rate

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        """Residual stream [T, B, D, H, W] to the same."""
        x = x_TBDHW + self._drop(self.attn(x_TBDHW))
        return x + self._drop(self.mlp(x))

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons of this block by name, in the order of the forward pass."""
        attn, mlp = self.attn, self.mlp
        layers = {"attn.in": attn.lif, "attn.q": attn.q_lif, "attn.k": attn.k_lif, "attn.v": attn.v_lif}
        return {**layers, f"attn.{attn.core.neuron_name}": attn.core.lif, "mlp.fc1": mlp.lif1, "mlp.fc2": mlp.lif2}

    def _drop(self, branch_TBDHW: Tensor) -> Tensor:
        if not (self.training and self.drop_rate):
            return branch_TBDHW
        # timm draws once per entry of the first axis; that must be a sample with all its timesteps.
        return drop_path(branch_TBDHW.transpose(0, 1), self.drop_rate, training=True).transpose(0, 1)


class STAttenTransformer(nn.Module):
    """Images [B, C, H, W], repeated T times, or event clips [B, T, C, H, W] to logits.

    Args:
        config: the model's part of the config.
        backend: implementation of the neurons, a key of NEURON_BACKENDS or `auto`.
    """

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        self.config = config
        self.timesteps = config.timesteps
        self.activation_checkpointing = False
        """Whether blocks keep their input alone, and run again in the backward pass."""

        def make_neuron(place: str) -> Neuron:
            kind = PLIF if config.neuron_at(place) == "plif" else LIF  # type: ignore[arg-type]
            return lambda: kind(config.v_threshold, config.tau, config.surrogate_alpha, backend=backend)

        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.embed = PatchEmbed(config, make_neuron("embed"), backend)
        self.blocks = nn.ModuleList(Block(config, make_neuron, backend, rate) for rate in rates)
        self.head_lif = make_neuron("head")()
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes], the mean over timesteps, or [T, B, classes] with `per_timestep_logits`.

        Raises:
            ValueError: x has another shape than the config says.
        """
        self._check(x)
        x_TBDHW = self.embed(x.transpose(0, 1) if self.config.events else x.unsqueeze(0), self.timesteps)
        checkpointing = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x_TBDHW = checkpointed(block, x_TBDHW) if checkpointing else block(x_TBDHW)
        logits_TBK = self.head(self.head_lif(x_TBDHW.mean((-1, -2))))
        return logits_TBK if self.config.per_timestep_logits else logits_TBK.mean(0)

    def set_timesteps(self, timesteps: int, block_size: int) -> None:
        """Change T and b: they own no weights. Raises ValueError when b is above T."""
        if not 1 <= block_size <= timesteps:
            raise ValueError(
                f"`block_size` must be between 1 and `timesteps`, but got (block_size={block_size}, timesteps={timesteps})"
            )
        self.timesteps = timesteps
        for block in self._blocks():
            block.attn.core.set_block_size(block_size)

    def spiking_layers(self) -> dict[str, LIF]:
        """Every layer of neurons by name, in the order of the forward pass."""
        layers = {f"embed.{i}": cast(LIF, lif) for i, lif in enumerate(self.embed.lifs)}
        for i, block in enumerate(self._blocks()):
            layers |= {f"blocks.{i}.{name}": lif for name, lif in block.spiking_layers().items()}
        return {**layers, "head": self.head_lif}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters form a layer, in timm's form: the embedding, each block, the head."""
        return {"stem": r"^embed", "blocks": r"^blocks" if coarse else r"^blocks\.(\d+)"}

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

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
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _stream(x: Tensor) -> Tensor:
    """The residual stream is float32 under mixed precision."""
    return x if x.dtype == torch.float64 else x.float()
