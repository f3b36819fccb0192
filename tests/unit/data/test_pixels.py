"""Grey levels come out as they are in the file, whatever its mode; what a file does not say is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from statten.data.check import check
from statten.data.dataset import Damaged
from statten.data.images import decode_image

RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
GREY = (RAMP >> 8).astype(np.uint8)


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def rgba(colour, alpha):
    return np.dstack([colour, colour, colour, alpha])


DEEP = {
    "png": encoded(RAMP, "PNG"),
    "png with a transparent level": encoded(RAMP, "PNG", transparency=0),
    "tiff": encoded(RAMP, "TIFF"),
    "tiff, compressed": encoded(RAMP, "TIFF", compression="tiff_lzw"),
    "tiff, big-endian": encoded(RAMP.astype(">u2"), "TIFF"),
    "tiff, white is zero": encoded(65535 - RAMP, "TIFF", tiffinfo={262: 0}),
    "pgm": b"P5 64 64 65535\n" + RAMP.astype(">u2").tobytes(),
    "pgm of 10 bits": b"P5 64 64 1023\n" + (RAMP >> 6).astype(">u2").tobytes(),
    "pgm in text": b"P2 64 64 65535\n" + " ".join(map(str, RAMP.ravel())).encode(),
}


@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_keep_their_grey_levels(name):
    image = decode_image(DEEP[name])
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image), np.repeat(RAMP[..., None] / 257, 3, 2), atol=1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(RAMP.astype(np.int32), "TIFF"), "holds 32-bit or signed whole numbers, and does not say"),
        (encoded(RAMP.astype(np.float32), "TIFF"), "holds floating-point numbers, and does not say"),
        (encoded(GREY / np.float32(255), "TIFF"), "holds floating-point numbers, and does not say"),
        (b"Pf\n2 2\n-1.0\n" + bytes(16), "holds floating-point numbers, and does not say"),
        (encoded(rgba(0 * GREY, GREY), "PNG"), "has its picture in its transparency alone"),
        (encoded(Image.merge("LA", [Image.fromarray(c) for c in (0 * GREY, GREY)]), "PNG"), "in its transparency alone"),
    ],
)
def test_a_range_that_nothing_states_is_refused(data, words):
    with pytest.raises(Damaged, match=words):
        decode_image(data)


@pytest.mark.filterwarnings("error")
def test_eight_bits_are_what_pillow_makes_of_them():
    palette = Image.fromarray(rgba(GREY, GREY.T)).convert("RGB").quantize(16)
    frames = [Image.fromarray(GREY), Image.fromarray(GREY.T)]
    files = [
        encoded(rgba(GREY, GREY.T), "PNG"), encoded(frames[0].convert("CMYK"), "TIFF"), encoded(RAMP > 30000, "PNG"),
        encoded(palette, "PNG"), encoded(GREY, "TIFF", tiffinfo={262: 0}),
        encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
    ]  # fmt: skip
    for data in files:
        assert np.array_equal(np.asarray(decode_image(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    seen = decode_image(encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))))
    assert np.array_equal(np.asarray(seen), np.asarray(palette.convert("RGB"))), "and no warning of Pillow's"


@pytest.mark.parametrize(("level", "warned"), [(0, True), (255, True), (128, True), (None, False)])
def test_check_warns_of_images_that_hardly_differ(level, warned, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(GREY if level is None else np.full_like(GREY, level)).rotate(90 * i).save(
                tmp_path / name / f"{i}.png"
            )
    assert any("hardly differ" in warning for warning in check("image_folder", tmp_path)["warnings"]) == warned
