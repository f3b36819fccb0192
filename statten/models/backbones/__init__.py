"""The networks: a file for each, and what they have in common."""

from statten.models.backbones.base import Backbone
from statten.models.backbones.sdt import STAttenTransformer
from statten.registry import BACKBONES

__all__ = ["BACKBONES", "Backbone", "STAttenTransformer"]
