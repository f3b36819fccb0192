"""Images: CIFAR-10 and CIFAR-100 in their archives, ImageNet and the user's own classes as class folders or tar shards."""

import pickle
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from statten.config import Config
from statten.data.archives import FILE
from statten.data.dataset import Damaged, Files
from statten.data.folders import IMAGES, Listing, dataset_root, held_out, list_parts
from statten.data.shards import Shards, has_shards, open_shards
from statten.errors import UserError, in_shell

_BITS, _WHITE_IS_ZERO = 258, 262
"""Tags of TIFF: bits of a value, and what its lowest means."""


def decode_image(data: bytes) -> Image.Image:
    """An RGB image from the content of a file, of several pictures the first; raises Damaged.

    More than 8 bits are scaled by the range that the file states, and refused where it states none. Transparency is dropped.
    """
    try:
        image = Image.open(BytesIO(data))
        image.load()
        return as_rgb(image)
    except Damaged:
        raise
    # Pillow's readers raise whatever the broken bytes lead them to.
    except Exception as error:
        reason = "is no image file" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise Damaged(f"{reason} ({len(data):,} bytes)") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An RGB image of 8 bits, as `decode_image` gives it; raises Damaged."""
    # Pillow clips what has more than 8 bits at 255.
    if image.mode[0] in "IF":
        image = _scaled(image)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        pixels = np.asarray(image).reshape(-1, 4)
        varies = (pixels != pixels[0]).any(0)
        if varies[3] and not varies[:3].any():
            raise Damaged("has its picture in its transparency alone, which is not read; save it on an opaque ground")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """An 8-bit grey image from one of 16 bits."""
    tags = getattr(image, "tag_v2", {})
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit or signed whole numbers"
        raise Damaged(f"holds {kind}, and does not say which are black and white; save it with 8 or 16 bits per channel")
    levels = np.asarray(image).astype(np.float64) / (2 ** tags.get(_BITS, (16,))[0] - 1)
    return Image.fromarray(np.rint(255 * (1 - levels if tags.get(_WHITE_IS_ZERO) == 0 else levels)).astype(np.uint8))


class ImageFolders(Files):
    """Images in class folders."""

    layout = "class folders"

    def __init__(self, config: Config, listing: Listing):
        super().__init__(config, listing.classes, listing.labels, **held_out(listing.parts))
        self._listing, self._folder, self.left_out = listing, str(listing.folder), listing.left_out

    def read(self, index: int) -> Image.Image:
        with open(self.locate(index), "rb", buffering=0) as file:
            return decode_image(file.read())

    def locate(self, index: int) -> str:
        return f"{self._folder}/{self._listing.names[index]}"


class ImageShards(Files):
    """Images in tar shards with an index."""

    layout = "tar shards"

    def __init__(self, config: Config, shards: Shards):
        super().__init__(config, shards.classes, shards.labels, **held_out(shards.parts))
        self._shards, self.shards = shards, shards.shard

    def read(self, index: int) -> Image.Image:
        return decode_image(self._shards.read(index))

    def locate(self, index: int) -> str:
        return self._shards.locate(index)

    def expect(self, indices: np.ndarray) -> None:
        self._shards.expect(indices)


def open_images(config: Config) -> Files:
    """Class folders or tar shards, whichever `data.root` holds."""
    root = dataset_root(config)
    if has_shards(root):
        return ImageShards(config, open_shards(root))
    return ImageFolders(config, list_parts(root, IMAGES, "image", needs_parts=config.data.name == "imagenet"))


class Arrays(Files):
    """Images that are all in memory."""

    layout = "pickled batches"

    def __init__(self, config: Config, classes: Sequence[str], x_NHWC: np.ndarray, labels: np.ndarray, test: np.ndarray):
        super().__init__(config, classes, labels, test)
        self._x = x_NHWC

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._x[index])

    def locate(self, index: int) -> str:
        return f"{self._config.data.root}: image {index}"


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR: pickled batches, in their archive or extracted. File names, address and digest are torchvision's.


def published(name: str) -> Any:
    """torchvision's class for `cifar10` or `cifar100`, which knows what is published."""
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]


def open_cifar(config: Config) -> Arrays:
    """CIFAR-10 or CIFAR-100 from its archive or its extracted folder."""
    root, name = dataset_root(config), config.data.name
    source = cifar_source(root, name)
    if source is None:
        about = published(name)
        raise UserError(
            f"{root}: holds no {name}; put {about.filename} ({about.url}) there, or fetch it with: "
            f"statten data prepare {name} --root {in_shell(root)}"
        )
    stat = source.stat()
    classes, x, labels, train = _read_cifar(source, name, (stat.st_mtime_ns, stat.st_size))
    return Arrays(config, classes, x, labels, np.arange(train, len(labels)))


def cifar_source(root: Path, name: str) -> Path | None:
    """The extracted folder or else the archive in `root`; None when there is neither."""
    about = published(name)
    found = (root / about.base_folder, root / about.filename)
    return next((path for path in found if path.exists()), None)


@lru_cache(maxsize=2)
def _read_cifar(source: Path, name: str, _changed: Any) -> tuple[list[str], np.ndarray, np.ndarray, int]:
    about = published(name)
    train, test = ([file for file, _ in files] for files in (about.train_list, about.test_list))
    wanted = [*train, *test, about.meta["filename"]]
    try:
        content = _members(source, about.base_folder, wanted)
        batches = [_unpickled(content[file]) for file in [*train, *test]]
        x = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        label_sets = [batch["labels" if "labels" in batch else "fine_labels"] for batch in batches]
        labels = np.concatenate([np.array(labels, dtype=np.int64) for labels in label_sets])
        classes = list(_unpickled(content[about.meta["filename"]])[about.meta["key"]])
    except KeyError as error:
        raise UserError(f"{source}: holds no {error.args[0]}, so it is no {name}; fetch {about.url} anew") from None
    # The bytes of a pickle lead its reader to errors of any kind.
    except Exception as error:
        raise UserError(f"{source}: cannot be read: {error}; fetch {about.url} anew") from None
    if x.dtype != np.uint8 or labels.ndim != 1 or not len(labels):
        raise UserError(f"{source}: holds no images of 8 bits with a label each; fetch {about.url} anew")
    if len(labels) != len(x) or labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(f"{source}: labels do not fit its {len(x)} images and {len(classes)} classes; fetch {about.url} anew")
    return classes, np.ascontiguousarray(x.transpose(0, 2, 3, 1)), labels, sum(map(len, label_sets[: len(train)]))


def _members(source: Path, folder: str, wanted: list[str]) -> dict[str, bytes]:
    if source.is_dir():
        missing = [file for file in wanted if not (source / file).is_file()]
        if missing:
            raise KeyError(missing[0])
        return {file: (source / file).read_bytes() for file in wanted}
    paths, content = {f"{folder}/{file}": file for file in wanted}, {}
    with tarfile.open(source, "r:gz") as archive:
        for member in archive:
            if member.name in paths and member.isreg() and member.size <= FILE:
                content[paths[member.name]] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return content


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays and plain values, and nothing that could run code."""

    _ALLOWED = frozenset({
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickled(data: bytes) -> dict[str, Any]:
    return _Unpickler(BytesIO(data), encoding="latin1").load()
