"""Augmentations: what moves where, and that nothing else does."""

import time

import numpy as np
import pytest
import torch

from statten.data.augment import ROTATION, SCALE, SHIFT, affine, augment_clips, augment_images, shift

ALL = np.arange(64)


def blob(size, row, column):
    x = torch.zeros(1, 1, size, size)
    x[..., row, column] = 1
    return x


def parameters(angle=0.0, scale=1.0, right=0.0, down=0.0):
    """`affine`'s parameters of one image; angle in degrees, shifts in halves of the image."""
    turn = np.radians(angle)
    return torch.tensor([[np.cos(turn) / scale], [np.sin(turn) / scale], [right], [down]], dtype=torch.float32)


def test_affine_identity():
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(affine(x, parameters()), x)


def test_affine_shift_and_quarter_turn():
    torch.testing.assert_close(affine(blob(8, 2, 3), parameters(right=2 / 8, down=2 * 2 / 8)), blob(8, 4, 4))
    turned = affine(blob(9, 2, 4), parameters(angle=90))  # a point above the centre
    torch.testing.assert_close(turned, blob(9, 4, 6), atol=1e-5, rtol=0)  # is right of it: clockwise, as rows count down


def test_affine_scale_enlarges_about_the_centre():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 4:12, 4:12] = 1
    larger, smaller = affine(x, parameters(scale=1.5)), affine(x, parameters(scale=0.5))
    assert larger.sum() == pytest.approx(64 * 1.5**2, rel=0.05)
    assert smaller.sum() == pytest.approx(64 * 0.5**2, rel=0.05)
    torch.testing.assert_close(larger, larger.flip(-1, -2))


def test_images_stay_within_the_promised_range():
    """The centre of mass of a small blob says how far an image went."""
    size = 64
    x = torch.zeros(256, 1, size, size)
    x[..., 31:33, 31:33] = 1
    moved = augment_images(x, 0, 0, np.arange(256))
    grid = torch.arange(size) - 31.5
    mass = moved.sum((1, 2, 3))
    right, down = (moved.sum((1, 2)) * grid).sum(1) / mass, (moved.sum((1, 3)) * grid).sum(1) / mass
    # The shift is applied after the turn and the scaling, which leave the centre where it is.
    for offset in (right, down):
        assert offset.abs().max() <= SHIFT * size + 0.1
        assert offset.abs().max() > 0.9 * SHIFT * size and offset.mean().abs() < 1
    # Two points on a line through the centre say how it turned and grew.
    x = torch.zeros(256, 1, size, size)
    x[..., 31:33, 43:45] = 1
    point = augment_images(x, 0, 0, np.arange(256))
    mass = point.sum((1, 2, 3))
    along = (point.sum((1, 2)) * grid).sum(1) / mass - right
    across = (point.sum((1, 3)) * grid).sum(1) / mass - down
    angle, scale = torch.rad2deg(torch.atan2(across, along)), torch.hypot(along, across) / 12
    assert 0.9 * ROTATION < angle.abs().max() <= ROTATION + 0.5
    assert 1 + 0.9 * SCALE < scale.max() <= 1 + SCALE + 0.01 and 1 - SCALE - 0.01 <= scale.min() < 1 - 0.9 * SCALE


@pytest.mark.parametrize(("augment", "shape"), [(augment_images, (1, 8, 8)), (augment_clips, (3, 2, 16, 16))])
def test_a_draw_belongs_to_the_sample(augment, shape):
    x = torch.rand(64, *shape)
    whole = augment(x, 5, 2, ALL)
    for at in ([63], [7, 1], list(range(10, 47))):
        assert torch.equal(augment(x[at], 5, 2, ALL[at]), whole[at]), "in whatever batch a sample is, it looks the same"
    for seed, epoch in ((6, 2), (5, 3)):
        assert not torch.equal(augment(x, seed, epoch, ALL), whole)
    assert not torch.equal(augment(x, 5, 2, ALL + 1), whole)


def test_clip_shift_moves_all_frames_alike_and_does_not_wrap():
    x = torch.rand(3, 4, 2, 6, 6)
    out = shift(x, torch.tensor([2, 0, -1]), torch.tensor([-1, 0, 3]))
    assert torch.equal(out[0, :, :, :5, 2:], x[0, :, :, 1:, :4])
    assert not out[0, :, :, 5].any() and not out[0, ..., :2].any()
    assert torch.equal(out[1], x[1])
    assert torch.equal(out[2, :, :, 3:, :5], x[2, :, :, :3, 1:])
    assert not out[2, :, :, :3].any() and not out[2, ..., 5].any()


def test_clips_move_by_whole_pixels_up_to_an_eighth():
    x = torch.zeros(512, 2, 2, 16, 16, dtype=torch.uint8)
    x[..., 8, 8] = 3
    out = augment_clips(x, 0, 0, np.arange(512))
    assert out.dtype == torch.uint8 and (out.flatten(3).sum(3) == 3).all()
    places = out[:, 0, 0].flatten(1).argmax(1)
    assert set((places // 16).tolist()) == set((places % 16).tolist()) == {6, 7, 8, 9, 10}
    assert len(places.unique()) == 25


def test_small_clips_are_left_alone():
    x = torch.rand(4, 2, 2, 7, 7)
    assert torch.equal(augment_clips(x, 0, 0, np.arange(4)), x)


def test_an_epoch_of_digits_is_augmented_in_no_time():
    x = torch.rand(1300, 1, 8, 8)
    seconds = []
    for epoch in range(5):
        began = time.process_time()
        for begin in range(0, 1300, 32):
            indices = np.arange(begin, min(begin + 32, 1300))
            augment_images(x[indices], 0, epoch, indices)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.1
