"""Single samples: equal generators give equal tensors, every option does something, and a clip's frames share their draw."""

import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from statten.config import load_config
from statten.data.event_augment import AUGMENTATIONS, TRIVIAL, cut_out, roll_rotate_shear
from statten.data.transforms import sample_transform

IMAGES = {"data.name": "cifar10", "model.in_channels": 3, "model.image_size": 32}
CLIPS = {
    "data.name": "cifar10dvs", "model.in_channels": 2, "model.image_size": 32, "model.events": True,
    "data.interpolation": "nearest",
}  # fmt: skip


def config(base, **data):
    return load_config("digits", {**base, **{f"data.{name}": value for name, value in {"augment": True, **data}.items()}})


def picture(width=48, height=40):
    """A colour gradient with a square in it: no flip, crop or shift leaves it as it is."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 255, width)[None, :]
    rgb[..., 1] = np.linspace(0, 200, height)[:, None]
    rgb[5:12, 8:20, 2] = 250
    return Image.fromarray(rgb)


def clip(frames=4, size=32):
    """Event counts [T, 2, S, S], the same in all frames and polarities."""
    counts = torch.randint(0, 6, (size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return counts.expand(frames, 2, size, size).clone()


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def drawn(transform, sample, number):
    seed(number)
    return transform(sample)


IMAGE_OPTIONS = [
    {"auto_augment": "rand-m9-n1-mstd0.4-inc1"}, {"auto_augment": "rand-m7-mstd0.5-inc1"}, {"auto_augment": "original"},
    {"auto_augment": "v0-mstd0.5"}, {"auto_augment": "rand-m9-t3a", "color_jitter": 0.3}, {"color_jitter": 0.5},
    {"crop_scale": [0.2, 0.9]}, {"crop_scale": [0.3, 0.6], "crop_ratio": [0.75, 1.33]}, {"hflip": 1.0},
    {"random_erasing": 1.0}, {"random_erasing": 1.0, "random_erasing_mode": "pixel"},
    {"random_erasing": 1.0, "random_erasing_mode": "rand"},
]  # fmt: skip
CLIP_OPTIONS = [{"event_augment": "roll_rotate_shear"}, {"event_augment": "trivial"}, {"hflip": 1.0}, {"cutout": 16}]


@pytest.mark.parametrize(
    ("base", "options", "sample"),
    [(IMAGES, options, picture()) for options in IMAGE_OPTIONS] + [(CLIPS, options, clip()) for options in CLIP_OPTIONS],
    ids=[str(options) for options in IMAGE_OPTIONS + CLIP_OPTIONS],
)
def test_every_option_changes_training_samples_as_the_generators_say(base, options, sample):
    changed, plain = sample_transform(config(base, **options), train=True), sample_transform(config(base), train=True)
    evaluated = sample_transform(config(base, **options), train=False)
    off = sample_transform(config(base, **{**options, "augment": False}), train=True)
    results = [drawn(changed, sample, number) for number in range(20)]
    shape = (4, 2, 32, 32) if base is CLIPS else (3, 32, 32)
    assert all(x.dtype == torch.float32 and x.shape == shape and x.isfinite().all() for x in results)
    assert any(not torch.equal(x, drawn(plain, sample, n)) for n, x in enumerate(results))
    assert all(torch.equal(x, drawn(changed, sample, number)) for number, x in enumerate(results)), "equal draws, equal samples"
    assert torch.equal(drawn(evaluated, sample, 0), drawn(evaluated, sample, 1)), "evaluation draws nothing"
    assert torch.equal(drawn(off, sample, 0), drawn(evaluated, sample, 5)), "data.augment=false means all of it"
    again = pickle.loads(pickle.dumps(changed))
    assert torch.equal(drawn(again, sample, 3), results[3]), "loader processes get the same transform"


def test_images_are_normalised_by_hand():
    black, white = (Image.new("RGB", (32, 32), colour) for colour in ("black", "white"))
    transform = sample_transform(config(IMAGES, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0]), train=True)
    torch.testing.assert_close(transform(black)[:, 0, 0], torch.tensor([-0.2, -0.8, -0.15]))
    torch.testing.assert_close(transform(white)[:, 7, 9], torch.tensor([1.8, 3.2, 0.35]))


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre():
    """320 wide and 288 in the middle is `large` of the ImageNet recipes."""
    columns = np.broadcast_to(np.arange(320, dtype=np.float32)[None, :, None] * 255 / 319, (320, 320, 3)).astype(np.uint8)
    config = load_config("digits", {**IMAGES, "model.image_size": 288, "data.crop_pct": 0.9, "data.interpolation": "bicubic"})
    x = sample_transform(config, train=False)(Image.fromarray(columns))
    expected = (
        torch.from_numpy(columns[16:304, 16:304].copy()).permute(2, 0, 1) / 255 - torch.tensor(config.data.mean)[:, None, None]
    )
    torch.testing.assert_close(x, expected / torch.tensor(config.data.std)[:, None, None])
    tall = sample_transform(config, train=False)(Image.new("RGB", (100, 300)))
    assert tall.shape == (3, 288, 288)


def test_a_crop_of_scale_and_ratio_1_is_the_whole_image():
    transform = sample_transform(config(IMAGES, mean=[0, 0, 0], std=[1, 1, 1]), train=True)
    image = picture(32, 32)
    torch.testing.assert_close(drawn(transform, image, 0), pil_to_tensor(image) / 255)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_all_frames_and_polarities_of_a_clip_share_a_draw(name):
    transform = sample_transform(config(CLIPS, event_augment=name, cutout=16, hflip=0.5), train=True)
    for number in range(30):
        x = drawn(transform, clip(), number)
        assert torch.equal(x, x[:1, :1].expand_as(x))
        assert set(x.unique().tolist()) <= set(range(6)), "nearest neighbours: counts stay counts"


def test_roll_rotate_shear_makes_one_of_three():
    """A roll keeps every event and is undone by another roll; the two others lose events at the border."""
    x, rolls = clip(1).float(), [(a, b) for a in range(-3, 4) for b in range(-3, 4)]
    found = []
    for number in range(60):
        seed(number)
        y = roll_rotate_shear(x)
        rows_kept = torch.equal(y[0, 0].sum(), x[0, 0].sum())
        if rows_kept and any(torch.equal(y.roll(roll, (-2, -1)), x) for roll in rolls):
            found.append("roll")
        else:
            # A shear in x leaves each row in its place: its middle row is unchanged.
            found.append(
                "shear" if torch.equal(y[0, 0, 15], x[0, 0, 15]) or torch.equal(y[0, 0, 16], x[0, 0, 16]) else "rotation"
            )
    assert {name: found.count(name) for name in set(found)}.keys() == {"roll", "rotation", "shear"}
    assert min(found.count(name) for name in set(found)) >= 10


def test_trivial_operations_at_zero_and_at_their_largest_strength():
    x = clip(2).float()
    for index, (operation, reach) in enumerate(TRIVIAL):
        assert torch.equal(operation(x, 0.0), x)
        assert torch.equal(operation(x, reach), x) == (index == 0)
    assert torch.equal(TRIVIAL[2][0](x, 5.0)[..., 5:], x[..., :-5]) and not TRIVIAL[2][0](x, 5.0)[..., :5].any()
    assert torch.equal(TRIVIAL[3][0](x, -5.0)[..., :-5, :], x[..., 5:, :])


def test_cutout_empties_one_square_that_the_border_may_cut():
    x, sizes = torch.ones(3, 2, 32, 32), set()
    for number in range(200):
        seed(number)
        y = cut_out(x, 16)
        rows, columns = (y[0, 0] == 0).any(1).sum().item(), (y[0, 0] == 0).any(0).sum().item()
        assert 8 <= rows <= 16 and 8 <= columns <= 16 and (y[0, 0] == 0).sum() == rows * columns
        sizes.add(rows)
    assert len(sizes) == 9 and x.min() == 1, "every place, and the input is kept"


def test_clips_are_resized_as_published():
    """Bilinear halving is the mean of 2 x 2 pixels; nearest takes the first of each; any number type comes in."""
    x = clip(2, 64).to(torch.int32)
    half = sample_transform(config(CLIPS, interpolation="bilinear"), train=False)(x)
    torch.testing.assert_close(half, F.avg_pool2d(x.float(), 2))
    assert torch.equal(sample_transform(config(CLIPS), train=False)(x), x[..., ::2, ::2].float())
    assert sample_transform(config(CLIPS), train=False)(torch.zeros(4, 2, 180, 240, dtype=torch.uint8)).shape == (4, 2, 32, 32)
