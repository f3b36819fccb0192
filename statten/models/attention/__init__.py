"""Attention between spikes: a file for each mode, and what they have in common."""

from statten.models.attention.core import AttentionCore, FramePool
from statten.models.attention.sdsa import SDSACore, pool_tokens_and_channels, shared_spikes
from statten.models.attention.spatial_temporal import SSACore, STAttenCore, statten
from statten.registry import ATTENTION

__all__ = [
    "ATTENTION", "AttentionCore", "FramePool", "SDSACore", "SSACore", "STAttenCore", "pool_tokens_and_channels",
    "shared_spikes", "statten",
]  # fmt: skip
