"""Weights and networks for other programs.

    model.safetensors     our weights: timm.create_model("local-dir:DIR", pretrained=True) opens them after `import statten`,
                          statten.load_model("DIR") with their transform and classes too
    config.json           what timm, and the Hugging Face Hub, know of a model: architecture, arguments, input, names of classes
    config.yaml           the whole config
    README.md             the model card: what it is, what was measured, how it is opened
    published.pth.tar     the same weights under the published names, with arguments as the published trainer writes them
    model.pt2             torch.export: the network in plain operators, which runs without this package; any batch size
    model.onnx            the same operators in ONNX, from `input` to `logits`; needs the extra statten[onnx]

Every file is opened again and run on the same input before the folder appears under its name.
"""

import argparse
import copy
import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from statten.config import Config, ModelConfig, dump_config
from statten.data.transforms import normalisation
from statten.errors import Failed, UserError, nearest
from statten.evaluation.card import card
from statten.evaluation.targets import EXPORTED_CONFIG, TIMM_CONFIG, Target, open_target
from statten.files import check_writable, new_folder, write_json, write_text
from statten.models import Backbone
from statten.models.memory import MaxPool
from statten.models.published import load_published, published_arguments, to_published
from statten.models.timm_models import TIMM_NAMES
from statten.neurons import LIF
from statten.registry import BACKBONES
from statten.storage.checkpoint import MODEL, save_tensors

DEFAULT = ("safetensors", "published", "torch_export")
FORMATS = (*DEFAULT, "onnx")


class PlainLIF(nn.Module):
    """The neuron in operators that every exporter knows, unrolled over its timesteps; the equations are `torch_backend`'s."""

    def __init__(self, lif: LIF):
        super().__init__()
        self.inv_tau, self.v_reset, self.v_threshold = float(lif.inv_tau), lif.v_reset, lif.v_threshold
        self.alpha = lif.alpha

    def forward(self, x_T: Tensor, timesteps: int | None = None, norm: nn.Module | None = None) -> Tensor:
        """Spikes [T, ...]; arguments as in `LIF.forward`."""
        if norm is not None:
            x_T = norm(x_T.flatten(0, 1)).unflatten(0, (x_T.shape[0], -1))
        rest = self.v_reset or 0.0
        v, spikes = torch.full_like(x_T[0], rest), []
        for t in range(timesteps or x_T.shape[0]):
            x = x_T[t] if x_T.shape[0] > 1 else x_T[0]
            h = v + (x - (v - rest)) * self.inv_tau
            s = (h >= self.v_threshold).to(x.dtype)
            v = h - self.v_threshold * s if self.v_reset is None else h * (1 - s) + rest * s
            spikes.append(s)
        return torch.stack(spikes)


class PlainMaxPool(nn.Module):
    """`MaxPool` without what it saves for a backward pass."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """3 x 3 max-pool with padding 1 over [N, C, H, W], or over the frames of [T, B, C, H, W]."""
        if x.ndim == 4:
            return nn.functional.max_pool2d(x, 3, self.stride, 1)
        return nn.functional.max_pool2d(x.flatten(0, 1), 3, self.stride, 1).unflatten(0, (x.shape[0], -1))


def plain(model: Backbone) -> Backbone:
    """A copy of a model for exporters: neurons and pools in plain operators, without gradients."""
    made = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LIF):
                setattr(parent, name, PlainLIF(child))
            elif isinstance(child, MaxPool):
                setattr(parent, name, PlainMaxPool(child.stride))
    return made


def export(
    path: Path | str, output: Path, formats: Iterable[str] = DEFAULT, overrides: Iterable[str] | Mapping[str, Any] = (), *,
    data: str | None = None, ema: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Write a target's weights and network in other formats, each checked by opening and running it.

    Args:
        path: as in `evaluate`, overrides, data and ema too.
        output: new folder.
        formats: some of FORMATS.

    Returns:
        `folder`, for each file `largest_difference` of its logits from ours, and the lines of Python in `open` that open it.

    Raises:
        UserError: an unknown format, or one that cannot express this network or needs a package that is not there.
    """
    formats = list(formats)
    for name in formats:
        if name not in (*FORMATS, "nir"):
            raise UserError(f"--format: {name!r} is no format; {nearest(name, FORMATS)}")
        missing = [package for package in _NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(f"--format {name}: needs {' and '.join(missing)}; install with: pip install 'statten[{name}]'")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise _exists(output)
    check_writable(output.parent, "name another --output")
    target = open_target(Path(path), overrides, data, ema)
    if "nir" in formats:
        raise UserError(f"--format nir: {nir_lacks(target.config.model)}")
    model = target.model().to("cpu")
    x = example(model.config, model.timesteps)
    with torch.no_grad():
        wanted = model(x)
    files: dict[str, Any] = {}
    try:
        with new_folder(output) as folder:
            for name in formats:
                files |= _WRITERS[name](target, model, folder, x, wanted)
    except FileExistsError:
        raise _exists(output) from None
    lines = opening(output) if MODEL in files else []
    return {"target": target.name, "checkpoint": str(target.source), "folder": str(output), "files": files, "open": lines}


def _exists(output: Path) -> UserError:
    return UserError(f"{output}: exists already; name a new folder with --output")


def nir_lacks(config: ModelConfig) -> str:
    """Which operators of a network NIR 1.0 cannot express; convolutions, LIF, sums and folded BatchNorm it can."""
    lacks = BACKBONES[config.backbone].operators(config)
    return f"NIR cannot express this network; it has no operator for {'; '.join(lacks)}"


def example(config: ModelConfig, timesteps: int) -> Tensor:
    """Three samples of the model's shape, drawn from a fixed seed."""
    size = (config.in_channels, config.image_size, config.image_size)
    generator = torch.Generator().manual_seed(0)
    if config.events:
        return torch.poisson(torch.full((3, timesteps, *size), 0.3), generator=generator)
    return torch.randn(3, *size, generator=generator)


def timm_config(config: Config, classes: list[str]) -> dict[str, Any]:
    """What timm knows of a model: the registered one of the same pooling, the arguments that make it this one, how its input is
    made, and its classes."""
    m, data = config.model, config.data
    names = {ours: theirs for theirs, ours in TIMM_NAMES.items()}
    mean, std = normalisation(config)
    return {
        "architecture": "statten_8_512" if m.pooling == "1111" else "statten_2_256",
        "num_classes": m.num_classes,
        "label_names": classes,
        "model_args": {names.get(k, k): v for k, v in m.model_dump(mode="json").items() if v is not None},
        "pretrained_cfg": {
            "input_size": [m.in_channels, m.image_size, m.image_size],
            "fixed_input_size": True,
            "interpolation": data.interpolation,
            "crop_pct": data.crop_pct,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": m.num_classes,
            "classifier": "head",
        },
    }


def opening(folder: Path) -> list[str]:
    """The two lines of Python that open an export."""
    return ["import statten, timm", f"model = timm.create_model({json.dumps(f'local-dir:{folder}')}, pretrained=True)"]


def _safetensors(target: Target, model: Backbone, folder: Path, x: Tensor, wanted: Tensor) -> dict[str, Any]:
    path = folder / MODEL
    save_tensors(model.state_dict(), path)
    write_text(folder / EXPORTED_CONFIG, dump_config(target.config))
    classes = target.classes()
    write_json(folder / TIMM_CONFIG, timm_config(target.config, classes))
    write_text(folder / "README.md", card(target, classes, sum(p.numel() for p in model.parameters())))
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return {path.name: _checked(path.name, opened, x, wanted)}


def _published(target: Target, model: Backbone, folder: Path, x: Tensor, wanted: Tensor) -> dict[str, Any]:
    path = folder / "published.pth.tar"
    arguments = argparse.Namespace(**published_arguments(target.config))
    saved = {
        "epoch": 0,
        "arch": target.config.model.backbone,
        "state_dict": to_published(model.state_dict(), target.config.model),
        "version": 2,
        "args": arguments,
    }
    torch.save(saved, path)
    return {path.name: _checked(path.name, load_published(path), x, wanted)}


def _program(model: Backbone, x: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        # Strides bring inequalities that hold for every batch, which the exporter cannot prove: it is to check them as it runs.
        return torch.export.export(
            plain(model), (x,), dynamic_shapes=({0: batch},), prefer_deferred_runtime_asserts_over_guards=True
        )


def _torch_export(target: Target, model: Backbone, folder: Path, x: Tensor, wanted: Tensor) -> dict[str, Any]:
    path, program = folder / "model.pt2", _program(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about storages that are shared or not writable: nobody writes to them
        torch.export.save(program, path)
        opened = torch.export.load(path).module()
    difference = _checked(path.name, opened, x, wanted)
    _checked(path.name, opened, x[:1], wanted[..., :1, :])  # and another batch size
    return {path.name: difference}


def _onnx(target: Target, model: Backbone, folder: Path, x: Tensor, wanted: Tensor) -> dict[str, Any]:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph, NotImplemented

    path, there = folder / "model.onnx", folder / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own deprecated calls
        program = torch.export.load(there) if there.is_file() else _program(model, x)
        try:
            made = torch.onnx.export(program, input_names=["input"], output_names=["logits"], verbose=False)
        except torch.onnx.OnnxExporterError as error:
            named = re.search(r"torch\.ops\.([\w.]+)", str(error))
            lacks = f"the operator {named[1]}" if named else f"this network: {error}"
            raise UserError(
                f"--format onnx: torch's exporter has no ONNX for {lacks}; --format torch_export keeps it"
            ) from None
    assert made is not None
    made.save(path)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except (InvalidGraph, NotImplemented) as error:  # whose words name the operator
        raise Failed(f"{path.name}: onnxruntime cannot run it, so nothing was kept: {error}") from None

    def opened(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])

    difference = _checked(path.name, opened, x, wanted)
    _checked(path.name, opened, x[:1], wanted[..., :1, :])
    return {path.name: difference}


def _checked(name: str, run: Callable[[Tensor], Tensor], x: Tensor, wanted: Tensor) -> dict[str, float]:
    with torch.no_grad():
        difference = (run(x) - wanted).abs().max().item()
    if not difference < 1e-4:
        raise Failed(f"{name}: its logits differ from the model's by {difference:g}; nothing was kept")
    return {"largest_difference": difference}


_WRITERS: dict[str, Callable[..., dict[str, Any]]] = {
    "safetensors": _safetensors,
    "published": _published,
    "torch_export": _torch_export,
    "onnx": _onnx,
}
_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Packages that a format needs beside this one's own, the extra of the same name."""
