"""The gallery of the worst mistakes: which they are, what their pictures show, and how much of a page they take."""

import base64
import io

import numpy as np
import pytest
import torch
from evaluated import SMALL
from formats import write_images
from PIL import Image

from statten.config import load_config
from statten.evaluation import gallery
from statten.evaluation.gallery import FRAMES, SIDE, gallery_html, mistakes, thumbnail, thumbnails
from statten.evaluation.measure import Measured


def opened(picture) -> np.ndarray:
    head, _, content = picture.uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def measured(rows) -> Measured:
    """Of (label, prediction, rank, confidence); indices count down from 100."""
    records = torch.tensor([[*row, 1.0] for row in rows], dtype=torch.float64).reshape(-1, 5)
    return Measured(100 - torch.arange(len(rows)), records, {}, 1.0, 1)


def test_the_surest_mistakes_come_first_and_what_is_right_does_not():
    config = load_config("digits")
    found = mistakes(measured([(1, 1, 0, 0.99), (1, 7, 1, 0.5), (2, 3, 4, 0.9), (4, 4, 1, 0.95)]), config)
    assert [(row["index"], row["label"], row["predicted"]) for row in found] == [(98, 2, 3), (99, 1, 7)]
    assert found[0]["confidence"] == pytest.approx(0.9) and "file" not in found[0]
    many = mistakes(measured([(0, 1, 2, n / 100) for n in range(60)]), config)
    assert len(many) == gallery.MISTAKES and many[0]["index"] == 100 - 59


def test_an_image_keeps_its_colours_and_its_sides():
    wide = Image.new("RGB", (400, 200), (200, 30, 60))
    pixels = opened(thumbnail(wide))
    assert pixels.shape == (SIDE // 2, SIDE, 3) and (pixels == (200, 30, 60)).all()
    small = opened(thumbnail(torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]])))
    assert small.tolist() == [[0, 128], [128, 255]], "one channel is grey, from its least to its largest value"
    flat = opened(thumbnail(torch.full((1, 3, 3), 7.0)))
    assert flat.shape == (3, 3) and not flat.any()
    colours = opened(thumbnail(torch.eye(3).reshape(3, 1, 3)))
    assert colours.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_a_clip_is_a_strip_of_its_frames_in_order():
    clip = torch.zeros(8, 2, 10, 10)
    clip[1, 1] = 4  # ON, in the first quarter
    clip[7, 0] = 4  # OFF, in the last
    made = thumbnail(clip)
    pixels = opened(made)
    assert made.strip and pixels.shape == (10, FRAMES * 12 - 2, 3)
    first, second, last = pixels[5, 5], pixels[5, 17], pixels[5, -5]
    assert first[0] > 200 > first[2] and last[2] > 200 > last[0] and not second.any()
    assert opened(thumbnail(torch.ones(1, 2, 300, 150))).shape == (56, 28, 3), "one frame, scaled"


def test_files_are_named_and_pictures_end_where_they_would_be_too_many(tmp_path, monkeypatch):
    root = write_images(tmp_path / "data", {"train": 3, "val": 3}, ["<cat>", "dog"])
    config = load_config("digits", {**SMALL, "data.name": "image_folder", "data.root": str(root), "model.in_channels": 3,
                                    "model.num_classes": 2})  # fmt: skip
    assert mistakes(measured([]), config) == []
    found = measured([(0, 1, 1, 0.9), (1, 0, 1, 0.8)])
    found.index = torch.tensor([0, 3])
    rows = mistakes(found, config)
    assert rows[0]["file"].startswith(str(root)) and rows[0]["file"] != rows[1]["file"]
    report = {"mistakes": rows, "class_names": ["<cat>", "dog"], "samples": 6, "top1": 200 / 3}
    shown = gallery_html(report, thumbnails(rows, config))
    assert "2 of 2 samples that are not right" in shown and shown.count("<img ") == 2
    assert "<b>&lt;cat&gt;</b> taken for <b>dog</b>, 90.0&nbsp;%" in shown and "<cat>" not in shown
    monkeypatch.setattr(gallery, "LARGEST", len(thumbnails(rows, config)[0].uri))
    assert len(thumbnails(rows, config)) == 1
    assert gallery_html({**report, "mistakes": []}, []) == "<p>There is none: every sample is predicted right.</p>"
