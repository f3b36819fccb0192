"""The samples that a model gets wrong most surely, as small pictures: images, and event clips as strips of frames.

A clip's frame shows events of both polarities, ON in red and OFF in blue, the brighter the more; neighbouring frames are added
up where a clip has more than a strip shows.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from statten.config import Config
from statten.data import open_source
from statten.data.dataset import CorruptSample, Files, RawSample, Source
from statten.data.events import regrouped
from statten.evaluation.measure import Measured

MISTAKES = 24
"""Mistakes that are kept and shown at most."""
SIDE = 112
"""Longer side of a picture, or of a frame of a clip, in pixels at most."""
FRAMES, STRIP = 4, 56
"""Frames of a strip at most, and the longer side of one."""
LARGEST = 500_000
"""Bytes of all pictures of a page at most, as PNG; what comes after is left out."""
_ON, _OFF = np.array([255.0, 96, 80]), np.array([80.0, 150, 255])


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of a mistake."""

    uri: str
    """A PNG as a data URI."""
    strip: bool
    """Whether it is a clip's frames side by side."""


def mistakes(found: Measured, config: Config) -> list[dict[str, Any]]:
    """The wrongly predicted samples of highest confidence: index in the dataset, file if any, label, predicted, confidence.

    Labels and predicted classes are numbers; confidence is the probability of the predicted class.
    """
    label, predicted = found.column("label").long(), found.column("prediction").long()
    wrong = ((label != predicted) & (found.column("rank") >= 1)).nonzero()[:, 0]
    order = found.column("confidence")[wrong].argsort(descending=True, stable=True)
    source, rows = open_source(config), []
    for i in wrong[order][:MISTAKES].tolist():
        index = int(found.index[i])
        row: dict[str, Any] = {"index": index, "label": int(label[i]), "predicted": int(predicted[i])}
        row["confidence"] = float(found.column("confidence")[i])
        rows.append(row | ({"file": source.locate(index)} if isinstance(source, Files) else {}))
    return rows


def thumbnails(rows: Sequence[dict[str, Any]], config: Config) -> list[Thumbnail]:
    """Pictures of the first of some mistakes, as many as fit into LARGEST."""
    source, made, size = open_source(config), [], 0
    for row in rows:
        try:
            found = thumbnail(_raw(source, row["index"]))
        except CorruptSample:  # it could be read a moment ago
            break
        size += len(found.uri) * 3 // 4
        if size > LARGEST:
            break
        made.append(found)
    return made


def _raw(source: Source, index: int) -> RawSample:
    """A sample as it lies in its dataset; of a set in memory, what the model reads."""
    if isinstance(source, Files):
        return source.checked(index)
    return source.batch(np.array([index])).x[0]


def thumbnail(sample: RawSample) -> Thumbnail:
    """A picture of an image, an image as a tensor [C, H, W] of any range, or a clip [T, 2, H, W]."""
    if isinstance(sample, Tensor) and sample.ndim == 4:
        return Thumbnail(_uri(_strip(sample.double().numpy())), strip=True)
    image = _image(sample) if isinstance(sample, Tensor) else sample.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return Thumbnail(_uri(image), strip=False)


def _image(x_CHW: Tensor) -> Image.Image:
    """From the least to the largest value as 8 bits; channels beyond the third, or a second alone, are not shown."""
    values = x_CHW[: 3 if len(x_CHW) >= 3 else 1].double().numpy()
    values = (values - values.min()) / (np.ptp(values) or 1.0)
    pixels = np.rint(255 * values).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _strip(clip_TCHW: np.ndarray) -> Image.Image:
    """Frames side by side with a gap between."""
    frames = regrouped(clip_TCHW, min(FRAMES, len(clip_TCHW)), "sum")
    off, on = (frames[:, i, :, :, None] / (frames.max() or 1) for i in (0, 1))
    pixels = np.minimum(255, np.sqrt(on) * _ON + np.sqrt(off) * _OFF).astype(np.uint8)  # a root, so that few events are seen
    images = [Image.fromarray(frame) for frame in pixels]
    for image in images:
        image.thumbnail((STRIP, STRIP))
    width, height = images[0].size
    strip = Image.new("RGB", (len(images) * (width + 2) - 2, height), (90, 90, 90))
    for i, image in enumerate(images):
        strip.paste(image, (i * (width + 2), 0))
    return strip


def _uri(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def gallery_html(report: dict[str, Any], made: Sequence[Thumbnail]) -> str:
    """The pictures of a report's mistakes with their classes and confidence."""
    rows, names = report["mistakes"], report["class_names"]
    if not rows:
        return "<p>There is none: every sample is predicted right.</p>"
    wrong = report["samples"] - round(report["top1"] * report["samples"] / 100)
    about = f"<p>{len(made)} of {wrong:,} samples that are not right, the surest first"
    about += (
        ". Strips are frames of a clip in order of time: ON events red, OFF events blue.</p>"
        if made[:1] and made[0].strip
        else ".</p>"
    )
    cells = []
    for row, picture in zip(rows, made, strict=False):
        label, predicted = escape(names[row["label"]]), escape(names[row["predicted"]])
        where = escape(row.get("file", f"sample {row['index']}"), quote=True)
        text = f"<b>{label}</b> taken for <b>{predicted}</b>, {100 * row['confidence']:.1f}&nbsp;%"
        alt = f"{where}: {label} taken for {predicted}"
        kind = ' class="strip"' if picture.strip else ""
        cells.append(f'<li{kind} title="{where}"><img src="{picture.uri}" alt="{alt}">{text}</li>')
    return f'{about}\n<ul class="gallery">\n{"".join(cells)}\n</ul>'
