"""Weights of the published implementation, read without running anything that is in the file, and written back.

The published names are on the left; its q, k and v are one convolution here.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from statten.config import ModelConfig, UserError
from statten.models.transformer import STAttenTransformer

_PARAMETERS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "w"}
_BATCHNORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _modules(depth: int) -> dict[str, str]:
    """Published module name to ours, for modules that stand for themselves."""
    names = {"patch_embed.rpe_conv": "embed.rpe.0", "patch_embed.rpe_bn": "embed.rpe.1", "head": "head", "head_lif": "head_lif"}
    for stage in range(4):
        suffix = stage or ""
        names[f"patch_embed.proj_conv{suffix}"] = f"embed.stages.{stage}.0"
        names[f"patch_embed.proj_bn{suffix}"] = f"embed.stages.{stage}.1"
        names[f"patch_embed.proj_lif{suffix}"] = f"embed.lifs.{stage}"
    for i in range(depth):
        theirs, ours = f"block.{i}", f"blocks.{i}"
        names |= {f"{theirs}.attn.proj_conv": f"{ours}.attn.proj.0", f"{theirs}.attn.proj_bn": f"{ours}.attn.proj.1"}
        for layer in (1, 2):
            names[f"{theirs}.mlp.fc{layer}_conv"] = f"{ours}.mlp.fc{layer}.0"
            names[f"{theirs}.mlp.fc{layer}_bn"] = f"{ours}.mlp.fc{layer}.1"
            names[f"{theirs}.mlp.fc{layer}_lif"] = f"{ours}.mlp.lif{layer}"
    return names


def _depth(names: Mapping[str, Any], prefix: str) -> int:
    found = [int(m.group(1)) for name in names if (m := re.match(rf"{prefix}\.(\d+)\.", name))]
    return max(found, default=-1) + 1


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state_dict, with or without "module." prefixes, as one of ours.

    Its `talking_heads` weights never get a gradient, and are dropped.

    Raises:
        UserError: weights that have no place here, or lack their partners, by name.
    """
    theirs = {name.removeprefix("module."): value for name, value in state.items()}
    theirs = {name: value for name, value in theirs.items() if not name.endswith("talking_heads.weight")}
    depth = _depth(theirs, "block")
    names, ours = _modules(depth), {}
    for i in range(depth):
        for kind, part, parameters in (("conv", 0, ("weight",)), ("bn", 1, _BATCHNORM)):
            for parameter in parameters:
                keys = [f"block.{i}.attn.{letter}_{kind}.{parameter}" for letter in "qkv"]
                missing = [key for key in keys if key not in theirs]
                if missing:
                    raise UserError(f"published weights: {', '.join(missing)} missing")
                tensors = [theirs.pop(key) for key in keys]
                joined = tensors[0] if parameter == "num_batches_tracked" else torch.cat(tensors)
                ours[f"blocks.{i}.attn.qkv.{part}.{parameter}"] = joined
    unknown = []
    for name, value in theirs.items():
        module, _, parameter = name.rpartition(".")
        if module in names and parameter in _PARAMETERS:
            ours[f"{names[module]}.{parameter}"] = value
        else:
            unknown.append(name)
    if unknown:
        raise UserError(f"published weights: no place for {', '.join(unknown)}")
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One of our state_dicts under the published names; the unused `talking_heads` weights are not made up."""
    depth = _depth(state, "blocks")
    names, theirs = {ours: published for published, ours in _modules(depth).items()}, {}
    for name, value in state.items():
        module, _, parameter = name.rpartition(".")
        joined = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.([01])", module)
        if joined:
            kind = ("conv", "bn")[int(joined[2])]
            shares = [value] * 3 if parameter == "num_batches_tracked" else value.chunk(3)
            for letter, share in zip("qkv", shares, strict=True):
                theirs[f"block.{joined[1]}.attn.{letter}_{kind}.{parameter}"] = share.clone()
        elif module in names:
            theirs[f"{names[module]}.{parameter}"] = value
        else:
            raise UserError(f"{name}: the published model has no such weight")
    return theirs


# The published arguments that shape the network, and what they are here.
_ARGUMENTS = {
    "num_classes": "num_classes",
    "img_size": "image_size",
    "in_channels": "in_channels",
    "pooling_stat": "pooling",
    "layer": "depth",
    "dim": "embed_dim",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "time_steps": "timesteps",
    "chunk_size": "block_size",
    "TET": "per_timestep_logits",
}


def published_config(arguments: Mapping[str, Any]) -> ModelConfig:
    """The model that a published checkpoint's arguments describe; raises UserError when one is missing."""
    missing = [name for name in _ARGUMENTS if name not in arguments]
    if missing:
        raise UserError(f"published arguments: {', '.join(missing)} missing")
    fields = {ours: arguments[theirs] for theirs, ours in _ARGUMENTS.items()}
    # The published model uses PLIF in the MLP and the head only.
    neuron = {"mlp": "plif", "head": "plif"} if arguments.get("spike_mode") == "plif" else "lif"
    attention = "sdsa" if arguments.get("attention_mode") == "SDT" else "statten"
    events = bool(arguments.get("dvs_mode", arguments["in_channels"] == 2))
    return ModelConfig.model_validate({**fields, "neuron": neuron, "attention": attention, "events": events})


def load_published(path: str | Path, ema: bool = False, backend: str = "auto") -> STAttenTransformer:
    """The model of a checkpoint (.pth.tar) as the published trainer writes it, in evaluation mode.

    Args:
        path: the file.
        ema: take the averaged weights (`state_dict_ema`) where the file has them, instead of the trained ones.
        backend: implementation of the neurons.

    Raises:
        UserError: unreadable, holding more than tensors and plain arguments, or not fitting the model.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a checkpoint that can be read safely: {reason}") from None
    if not isinstance(saved, dict) or not {"state_dict", "args"} <= set(saved):
        raise UserError(f"{path}: must hold state_dict and args, as the published trainer writes them")
    model = STAttenTransformer(published_config(vars(saved["args"])), backend)
    key = "state_dict_ema" if ema and saved.get("state_dict_ema") else "state_dict"
    try:
        model.load_state_dict(from_published(saved[key]))
    except RuntimeError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    return model.eval()
