"""Networks: backbones, the attention inside them, published weights, timm's names."""

from statten.models.attention import ATTENTION
from statten.models.backbones import BACKBONES, Backbone, STAttenTransformer
from statten.models.factory import build_model, layer_names
from statten.models.folding import fold_batch_norm

__all__ = ["ATTENTION", "BACKBONES", "Backbone", "STAttenTransformer", "build_model", "fold_batch_norm", "layer_names"]
