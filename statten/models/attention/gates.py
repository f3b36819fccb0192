"""The gate of Q-K attention (Zhou et al., NeurIPS 2024), which has no v and no product of matrices. Shapes: see core.py."""

from collections.abc import Iterator

from torch import Tensor, nn

from statten.models.attention.core import exact
from statten.models.operations import Operation
from statten.neurons import LIF
from statten.neurons.packing import is_marked, mark


class QKGate(nn.Module):
    """k passes where q spikes: at a token of a head (`qk_token`) where any of its channels do, or in a channel (`qk_channel`)
    where any token does. "Any" is a neuron over the sum of q, whose threshold one spike reaches.

    Args:
        mixer: qk_token or qk_channel.
        heads: h, for qk_token.
        lif: the neuron.
    """

    def __init__(self, mixer: str, heads: int, lif: LIF):
        super().__init__()
        self.channels, self.heads, self.lif = mixer == "qk_channel", heads, lif

    def forward(self, q_TBDHW: Tensor, k_TBDHW: Tensor) -> Tensor:
        """Spikes [T, B, D, H, W]."""
        if self.channels:
            mixed = k_TBDHW * self.lif(q_TBDHW.sum((-1, -2), keepdim=True, dtype=exact(q_TBDHW))).to(k_TBDHW.dtype)
        else:
            q_TBhdHW, k_TBhdHW = (x.unflatten(2, (self.heads, -1)) for x in (q_TBDHW, k_TBDHW))
            gate_TBh1HW = self.lif(q_TBhdHW.sum(3, keepdim=True, dtype=exact(q_TBDHW))).to(k_TBDHW.dtype)
            mixed = (k_TBhdHW * gate_TBh1HW).flatten(2, 3)
        backend = is_marked(k_TBDHW)
        return mixed if backend is None else mark(mixed, backend)

    @staticmethod
    def operations(mixer: str, heads: int, block: str, tokens: int, width: int) -> Iterator[Operation]:
        """One addition for every spike of q; what passes is a mask, and not counted.

        Args:
            mixer: as above.
            heads: as above.
            block: name that layers and points begin with, such as blocks.0.
            tokens: N.
            width: D of the block.
        """
        N, D = tokens, width
        gates = D if mixer == "qk_channel" else heads * N
        yield Operation(f"{block}.attn.gate", "gate", f"{block}.attn.q", N * D, 0, N * D, gates)
