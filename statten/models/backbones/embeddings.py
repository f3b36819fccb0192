"""Embeddings between the stages of a hierarchical network: what they are made of, and their two kinds. Shapes:

    T timesteps   B batch   C input channels   D width of the stage   H, W the image or a map

An embedding is a few 3 x 3 convolutions one after the other, and beside them a branch of one 1 x 1 convolution, which reads
what one of the others reads. Each has a BatchNorm, and perhaps a max-pool, behind it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from statten.config import ModelConfig
from statten.models.backbones.base import Neuron, conv_bn, convolved, fired, per_frame, residual
from statten.models.memory import MaxPool
from statten.models.operations import Operation, conv
from statten.neurons import LIF


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution that picks the positions of its stride first.

    PyTorch 2.11 on CPUs writes past its memory in the backward pass of a strided one over channels-last maps.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C', H / stride, W / stride], rounded up."""
        rows, columns = self.stride
        return nn.functional.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)


class Step(NamedTuple):
    """A convolution with BatchNorm, and a max-pool that halves the map behind it where `pool` says so."""

    inner: int
    """Channels that it reads."""
    outer: int
    """Channels that it writes."""
    side: int
    """Height and width of the map that it reads."""
    kernel: int
    stride: int
    pool: bool

    def module(self, backend: str) -> nn.Sequential:
        """The convolution and its BatchNorm."""
        kind, padding = (Pointwise if self.kernel == 1 else nn.Conv2d), self.kernel // 2
        return conv_bn(kind(self.inner, self.outer, self.kernel, self.stride, padding, bias=False), backend)

    def operation(self, layer: str, point: str | None, levels: int = 1) -> Operation:
        """The convolution as a row of the energy ledger."""
        return conv(layer, point, self.inner, self.outer, self.side, self.kernel, self.stride, levels)


class Embedding(NamedTuple):
    """The parts of an embedding."""

    steps: list[Step]
    """The 3 x 3 convolutions."""
    branch: int
    """Which of their inputs the branch reads."""
    short: Step
    """The branch's convolution."""
    first: bool
    """Whether it reads frames, and not what a stage gives."""

    @property
    def twin(self) -> bool:
        """Whether the branch has neurons of its own, on the map that those in front of the second convolution read."""
        return self.first and len(self.steps) == 2


# By the stem's stride: the stage's width over that of each convolution, which of them halve the map, and whose input the branch
# reads.
_STEMS = {
    1: ((2, 1), (False, False), 1),
    4: ((2, 1, 1), (True, True, False), 1),
    8: ((8, 4, 2, 1), (False, True, True, True), 2),
}
FIRST, LAST = (True, False), (False, True)
"""Which convolution halves the map in an embedding of two, behind a stage."""


def embeddings(
    config: ModelConfig, later: Sequence[bool], strided_stem: bool = False, pooled_branch: bool = False
) -> list[Embedding]:
    """The embeddings of a config with stages.

    Args:
        config: the network.
        later: FIRST or LAST, for the embeddings behind the first stage.
        strided_stem: whether the stem of stride 4 halves by strides and not by max-pools.
        pooled_branch: whether the branch behind the first stage halves by a max-pool and not by its stride.
    """
    inner, side, found = config.in_channels, config.image_size, []
    for i, stage in enumerate(config.stages):
        parts, halvings, branch = _STEMS[config.stem] if i == 0 else ((1, 1), later, 0)
        strided = strided_stem and i == 0 and config.stem == 4
        steps: list[Step] = []
        for part, halved in zip(parts, halvings, strict=True):
            stride = 2 if halved and strided else 1
            steps.append(Step(inner, stage.width // part, side, 3, stride, halved and not strided))
            inner, side = stage.width // part, (side + 1) // 2 if halved else side
        read, pool = steps[branch], pooled_branch and i > 0
        stride = 1 if pool else 2 ** sum(halvings[branch:])
        found.append(Embedding(steps, branch, Step(read.inner, stage.width, read.side, 1, stride, pool), first=i == 0))
    return found


class _Embed(nn.Module):
    """The convolutions, pools and neurons of an embedding.

    Args:
        plan: its parts.
        neurons: how many layers of neurons it has, in the order of the forward pass.
        neuron: makes one.
        backend: implementation of the neurons.
    """

    def __init__(self, plan: Embedding, neurons: int, neuron: Neuron, backend: str):
        super().__init__()
        self.first, self.branch, self.twin = plan.first, plan.branch, plan.twin
        self.convs = nn.ModuleList(step.module(backend) for step in plan.steps)
        self.pools = nn.ModuleList(_pool(step) for step in plan.steps)
        self.short, self.short_pool = plan.short.module(backend), _pool(plan.short)
        self.lifs = nn.ModuleList(neuron() for _ in range(neurons))

    def reached(self, i: int, lif: nn.Module, x_TBCHW: Tensor, timesteps: int) -> Tensor:
        """The spikes of neurons behind convolution i; one frame is computed once for all T in front of them."""
        pair, pool = self.convs[i], self.pools[i]
        if isinstance(pool, nn.Identity):
            return fired(cast(LIF, lif), pair, x_TBCHW, timesteps)
        return lif(per_frame(pool, convolved(pair, x_TBCHW, timesteps)), timesteps)


class MembraneEmbed(_Embed):
    """Neurons in front of every convolution but that of an image; the values of both branches are added.

    In the stem of stride 1 the branch has neurons of its own.
    """

    def __init__(self, plan: Embedding, neuron: Neuron, backend: str):
        super().__init__(plan, len(plan.steps) - plan.first + plan.twin, neuron, backend)

    def forward(self, x_TBCHW: Tensor, timesteps: int) -> Tensor:
        """Frames [T, B, C, H, W], an image [1, B, C, H, W] for all T, or a stage's stream, to the next stage's stream."""
        lifs = iter(self.lifs)
        x = x_TBCHW if self.first else next(lifs)(x_TBCHW)
        shared = x
        if self.twin:
            values = convolved(self.convs[0], x, timesteps)
            x, shared = (next(lifs)(values, timesteps) for _ in range(2))
        else:
            for i in range(len(self.convs) - 1):
                x = self.reached(i, next(lifs), x, timesteps)
                shared = x if i + 1 == self.branch else shared
        x = per_frame(self.pools[-1], per_frame(self.convs[-1], x))
        return residual(x) + per_frame(self.short_pool, per_frame(self.short, shared))

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        return {str(i): cast(LIF, lif) for i, lif in enumerate(self.lifs)}

    @staticmethod
    def operations(plan: Embedding, name: str, added: int) -> Iterator[Operation]:
        """The convolutions of an embedding `name`, such as embeds.0; `added`, as SpikingEmbed has it, means nothing here."""
        points = [None] * plan.first + [f"{name}.{i}" for i in range(len(plan.steps))]
        for i, step in enumerate(plan.steps):
            yield step.operation(f"{name}.conv{i}", points[i])
        yield plan.short.operation(f"{name}.short", points[plan.branch + plan.twin])


class SpikingEmbed(_Embed):
    """Neurons behind every convolution; the spikes of both branches are added."""

    def __init__(self, plan: Embedding, neuron: Neuron, backend: str):
        super().__init__(plan, len(plan.steps), neuron, backend)
        self.short_lif = neuron()

    def forward(self, x_TBCHW: Tensor, timesteps: int) -> Tensor:
        """Frames [T, B, C, H, W], an image [1, B, C, H, W] for all T, or a stage's stream, to the next stage's stream."""
        x = shared = x_TBCHW
        for i, lif in enumerate(self.lifs):
            shared = x if i == self.branch else shared
            x = self.reached(i, lif, x, timesteps)
        return residual(x) + fired(self.short_lif, self.short, shared, timesteps)

    def spiking_layers(self) -> dict[str, LIF]:
        """The neurons by name, in the order of the forward pass."""
        return {**{str(i): cast(LIF, lif) for i, lif in enumerate(self.lifs)}, "short": self.short_lif}

    @staticmethod
    def operations(plan: Embedding, name: str, added: int) -> Iterator[Operation]:
        """The convolutions of an embedding `name`, such as embeds.0, whose stream is the sum of `added` spikes."""
        stream = (None, 1) if plan.first else (f"{name}.stream", added)
        reads = [stream, *((f"{name}.{i}", 1) for i in range(len(plan.steps)))]
        for i, step in enumerate(plan.steps):
            yield step.operation(f"{name}.conv{i}", *reads[i])
        yield plan.short.operation(f"{name}.short", *reads[plan.branch])


def _pool(step: Step) -> nn.Module:
    return MaxPool(stride=2) if step.pool else nn.Identity()
