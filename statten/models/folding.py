"""Inference without BatchNorm: its scale and shift go into the convolution in front of it."""

import copy
from typing import Protocol, runtime_checkable

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from statten.models.backbones.base import Backbone


@runtime_checkable
class Foldable(Protocol):
    """A module that is one convolution in evaluation mode."""

    def folded(self) -> nn.Conv2d:
        """That convolution."""


def fold_batch_norm(model: Backbone) -> Backbone:
    """A copy of a model for inference, every convolution and its BatchNorm made one convolution with a bias.

    Several layers that are one convolution together are a module with a method `folded`, which makes it. The results are those
    of the model in evaluation mode, up to rounding: a membrane that ties with its threshold may decide otherwise. The copy
    cannot be trained.
    """
    folded = copy.deepcopy(model).eval()
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Foldable):
                setattr(parent, name, child.folded())
    for pair in list(folded.conv_norms()):
        conv, norm = pair
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            pair[0], pair[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return folded.requires_grad_(False)
