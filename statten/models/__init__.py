"""The network. An attention mode is one core and one entry of ATTENTION; the conformance tests cover every entry."""

from statten.models.attention import ATTENTION
from statten.models.factory import build_model
from statten.models.folding import fold_batch_norm
from statten.models.transformer import STAttenTransformer

__all__ = ["ATTENTION", "STAttenTransformer", "build_model", "fold_batch_norm"]
