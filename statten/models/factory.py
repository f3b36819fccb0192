"""A config to its network."""

from statten.config import ModelConfig
from statten.models.transformer import STAttenTransformer


def build_model(config: ModelConfig, backend: str = "auto") -> STAttenTransformer:
    """The network that a config describes, with fresh weights from torch's current random state.

    Args:
        config: the model's part of a config.
        backend: implementation of the neurons; `auto` takes the fastest that runs here.

    Raises:
        UserError: no such backend.
    """
    return STAttenTransformer(config, backend)
