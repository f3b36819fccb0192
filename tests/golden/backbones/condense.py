"""Condense golden files: large gradients become sketches, inputs of small whole numbers bytes.

    python tests/golden/backbones/condense.py SOURCE TARGET

A sketch of a gradient is its product with eight vectors of random signs and its norm: what differs from it differs there too.
"""

import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WHOLE = 64
"""Gradients of so many elements are kept as they are."""


def sketch(name: str, gradient: Tensor) -> Tensor:
    """Nine numbers of a gradient: products with vectors of signs that its name seeds, and its norm; float64."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    signs = torch.randint(0, 2, (8, gradient.numel()), generator=generator, dtype=torch.int8).double() * 2 - 1
    flat = gradient.double().flatten()
    return torch.cat([signs @ flat, flat.norm()[None]])


def condense(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a golden file, smaller."""
    kept = {}
    for name, value in tensors.items():
        if name.startswith("grad.") and value.numel() > WHOLE:
            kept[f"sketch.{name.removeprefix('grad.')}"] = sketch(name, value)
        elif name.startswith("x") and value.is_floating_point() and torch.equal(value.byte().to(value.dtype), value):
            kept[name] = value.byte()
        else:
            kept[name] = value
    return kept


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    save_file(condense(load_file(source)), target)
