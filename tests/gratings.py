"""Own pictures that a small network can learn: striped ones, whose class is the stripes' direction and tint."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def write_gratings(root: Path, images: int = 300, classes: int = 4, side: int = 32, noise: float = 0.25) -> Path:
    """Write noisy gratings as `root/CLASS/*.png`, as many of each class, and return the folder; the same at every call."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for number in range(images):
        label = number % classes
        angle, tint = np.pi * (label + rng.uniform(-0.2, 0.2)) / classes, np.eye(3)[label % 3]
        wave = np.sin(2 * np.pi * (rng.uniform(3, 5) * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform()))
        pixels = 0.5 + 0.25 * wave[..., None] * (0.5 + 0.5 * tint) + rng.normal(0, noise, (side, side, 3))
        path = root / f"class{label}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8)).save(path)
    return root


if __name__ == "__main__":
    write_gratings(Path(sys.argv[1]))
