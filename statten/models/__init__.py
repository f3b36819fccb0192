"""The network. An attention mode is one core and one entry of ATTENTION; the conformance tests cover every entry."""

from statten.config import ModelConfig
from statten.models.attention import ATTENTION
from statten.models.folding import fold_batch_norm
from statten.models.transformer import STAttenTransformer

__all__ = ["ATTENTION", "STAttenTransformer", "build_model", "fold_batch_norm"]


def build_model(config: ModelConfig, backend: str = "auto") -> STAttenTransformer:
    """The network that a config describes, with fresh weights from torch's current random state.

    Args:
        config: the model's part of a config.
        backend: implementation of the neurons; `auto` takes the fastest that runs here.

    Raises:
        UserError: no such backend.
    """
    return STAttenTransformer(config, backend)
