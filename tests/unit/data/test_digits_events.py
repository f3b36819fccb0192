"""The simulated event camera, by hand and against SpikingJelly's integration."""

import math

import numpy as np
import pytest
import torch
from peer_datasets import peer

from statten.config import load_config
from statten.data.digits import digit_images
from statten.data.digits_events import DARK, THRESHOLD, fire, integrate, load, record, render, saccades

SIZE = 16


@pytest.fixture(scope="module")
def counts():
    return record(digit_images()[:40], SIZE, saccades(SIZE))


def stream(counts_KHW):
    """The events of one clip, as event files hold them: t, x, y, p, in order of time."""
    counts = counts_KHW.numpy()
    t, y, x = (np.repeat(axis, np.abs(counts[counts != 0])) for axis in counts.nonzero())
    p = np.repeat(counts[counts != 0] > 0, np.abs(counts[counts != 0])).astype(int)
    return {"t": t, "x": x, "y": y, "p": p}


def test_a_pixel_fires_once_per_threshold_and_remembers_the_rest():
    level = torch.zeros(4)
    fired, level = fire(torch.tensor([0.24, 0.25, 0.80, -0.60]), level, threshold=0.25)
    assert fired.tolist() == [0, 1, 3, -2]
    assert level.tolist() == [0, 0.25, 0.75, -0.5]
    fired, level = fire(torch.tensor([0.26, 0.0, 0.99, -0.74]), level, threshold=0.25)
    assert fired.tolist() == [1, -1, 0, 0]


def test_a_moving_edge_by_hand():
    """Ink covers the left half of the image; it moves right by 4 pixels and back by 2."""
    edge = torch.zeros(1, 8, 8, dtype=torch.float64)
    edge[:, :, :4] = 1
    path = torch.stack([torch.linspace(0, 4, 41), torch.zeros(41)], dim=1).double()
    path = torch.cat([path, path[20:40].flip(0)])  # 4 -> 2
    counts = record(edge, 32, path)[0].int()
    on, off = counts.clamp(min=0).sum(0), -counts.clamp(max=0).sum(0)
    # A digit pixel is 3 sensor pixels wide, so brightness falls from ink to paper between 14.5 and 17.5 at first, between
    # 18.5 and 21.5 when the edge is farthest; the centre of column c is at c + 0.5.
    per_crossing = math.floor(math.log(1 / DARK) / THRESHOLD)
    assert per_crossing == 9
    row = 16
    assert on[row, 17:19].tolist() == [9, 9], "paper before, ink after"
    assert not on[row, 22:].any() and not off[row, 22:].any(), "the edge never comes that far"
    assert not on[row, 10:15].any() and not off[row, 10:15].any(), "ink before and after"
    # Any other pixel: levels that its brightness crosses on the way up, then down again from its highest level.
    for column in range(14, 22):
        seen = [float(render(edge, 32, at)[0, row, column]) for at in path]
        top = max(seen)
        ups = math.floor((top - seen[0]) / THRESHOLD)
        downs = math.floor((seen[0] + ups * THRESHOLD - seen[-1]) / THRESHOLD)
        assert (on[row, column], off[row, column]) == (ups, max(0, downs)), column


def test_a_still_camera_sees_nothing():
    assert not record(digit_images()[:3], SIZE, torch.zeros(5, 2, dtype=torch.float64)).any()


def test_path_is_a_closed_triangle_inside_the_margin():
    path = saccades(SIZE, steps=4)
    assert path.shape == (13, 2)
    assert path[[0, 4, 8, 12]].tolist() == [[-2, -2], [0, 2], [2, -2], [-2, -2]]
    torch.testing.assert_close(path[2], (path[0] + path[4]) / 2)


@pytest.mark.parametrize("size", [4, 16, 21, 64])
def test_render_keeps_the_ink(size):
    """Whatever the size and place, a sensor sees the digit's ink, and at rest in its middle a mirror image mirrored."""
    images = digit_images()[:20]
    seen = [((render(images, size, torch.tensor(at)).exp() - DARK) / (1 - DARK)) for at in ([0.0, 0.0], [0.4, -0.3])]
    for ink in seen:
        assert ink.min() > -1e-4 and ink.max() < 1 + 1e-4
        area = ink.sum((1, 2)) / size**2
        torch.testing.assert_close(area.double(), images.mean((1, 2)) * 0.75**2, rtol=0.06, atol=0)
    mirrored = render(images.flip(-1), size, torch.zeros(2))
    torch.testing.assert_close(mirrored.flip(-1), render(images, size, torch.zeros(2)), atol=1e-4, rtol=0)


def test_back_where_it_began_a_pixel_has_fired_as_often_on_as_off(counts):
    assert counts.any(dim=1).any(0).sum() > SIZE * SIZE / 2
    assert not counts.sum(1).any()
    assert counts.abs().max() <= 3, "instants are close enough together"


@pytest.mark.parametrize("frames", [1, 2, 4, 7, 16])
def test_frames_hold_all_events_in_equal_numbers(counts, frames):
    clips = integrate(counts, frames)
    assert clips.shape == (40, frames, 2, SIZE, SIZE) and clips.dtype == torch.uint8
    n = counts.abs().sum((1, 2, 3))
    per_frame = clips.sum((2, 3, 4))
    assert torch.equal(per_frame.sum(1), n)
    assert torch.equal(per_frame[:, :-1], (n // frames)[:, None].expand(-1, frames - 1))
    summed = clips.sum(1)
    assert torch.equal(summed[:, 0], -counts.clamp(max=0).sum(1)) and torch.equal(summed[:, 1], counts.clamp(min=0).sum(1))


@pytest.mark.parametrize("frames", [1, 3, 4, 10, 16])
def test_integration_is_spikingjellys(counts, frames):
    integrate_events_by_fixed_frames_number = peer("utils").integrate_events_by_fixed_frames_number
    sparse = torch.zeros(4, 5, 3, 3, dtype=torch.int8)  # fewer events than frames, or none
    sparse[0, 1, 0, 0], sparse[1, 4, 2, 2], sparse[2, :2, 1] = 1, -2, 1
    for recorded in (counts, sparse):
        ours = integrate(recorded, frames)
        for clip, events in zip(ours, map(stream, recorded), strict=True):
            if len(events["t"]) == 0:
                assert not clip.any()
                continue
            height, width = recorded.shape[-2:]
            theirs = integrate_events_by_fixed_frames_number(events, "number", frames, height, width)
            np.testing.assert_array_equal(clip.numpy(), theirs)


def test_the_dataset_is_recorded_so_and_learnable():
    """Clips of the whole dataset are those of the parts; and a nearest class mean already tells digits apart."""
    samples = load(load_config("digits_events", ["model.timesteps=3", "model.block_size=1"]))
    assert samples.x.shape == (1797, 3, 2, SIZE, SIZE)
    some = torch.tensor([0, 900, 1796])
    assert torch.equal(samples.x[some], integrate(record(digit_images()[some], SIZE, saccades(SIZE)), 3))
    x, y = samples.x.flatten(1).float(), samples.y
    means = torch.stack([x[:1000][y[:1000] == digit].mean(0) for digit in range(10)])
    assert (torch.cdist(x[1000:], means).argmin(1) == y[1000:]).float().mean() > 0.75
