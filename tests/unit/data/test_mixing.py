"""Mixing: timm's own numbers on the same draw, soft targets that sum to 1, and no trace in the global generators."""

import numpy as np
import pytest
import torch
from timm.data import Mixup

from statten.config import load_config
from statten.data.mixing import EventMix, make_mixer, numpy_seeded

KEY = (42, 3, 7, 0)
SOFT = [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0, "mixup_prob": 0.6}, {"mixup": 0.5, "mixup_mode": "elem"}]


def mixer(recipe="digits", **train):
    return make_mixer(load_config(recipe, {f"train.{name}": value for name, value in train.items()}))


def images(batch=8):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, 8, 8, generator=generator), torch.arange(batch) % 10


def clips(batch=8):
    x = torch.poisson(torch.full((batch, 4, 2, 16, 16), 0.5), generator=torch.Generator().manual_seed(0))
    return x, torch.arange(batch) % 10


def test_nothing_to_mix_is_none():
    assert mixer() is None and mixer(mixup_prob=0.5) is None


@pytest.mark.parametrize("options", SOFT, ids=str)
def test_mixup_and_cutmix_are_those_of_timm_on_the_same_draw(options):
    ours, x, y = mixer(**options), *images()
    names = {"mixup": "mixup_alpha", "cutmix": "cutmix_alpha", "mixup_prob": "prob", "mixup_mode": "mode"}
    theirs = Mixup(**{"mixup_alpha": 0.0, **{names[k]: v for k, v in options.items()}}, label_smoothing=0.1, num_classes=10)
    for step in range(10):
        key = (42, 0, step, 0)
        with numpy_seeded(key):
            expected = theirs(x.clone(), y)
        for got, wanted in zip(ours(x.clone(), y, key=key), expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("options", [*SOFT, {"eventmix": 1.0}], ids=str)
def test_targets_are_soft_and_draws_are_functions_of_the_key_alone(options):
    mix, x, y = mixer("digits_events", **options), *clips()
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    results = {step: mix(x.clone(), y, key=(42, 3, step, 0)) for step in range(12)}
    assert np.array_equal(np.random.get_state()[1], before[0]) and torch.equal(torch.random.get_rng_state(), before[1])
    for step, (mixed, target) in results.items():
        assert mixed.shape == x.shape and mixed.dtype == torch.float32 and target.shape == (8, 10)
        torch.testing.assert_close(target.sum(1), torch.ones(8))
        assert target.min() >= 0.1 / 10 - 1e-6, "smoothed"
        np.random.seed(step)
        again = mix(x.clone(), y, key=(42, 3, step, 0))
        assert torch.equal(again[0], mixed) and torch.equal(again[1], target)
    for place, name in enumerate(("seeds", "epochs", "steps", "ranks")):
        keys = [tuple(number if i == place else 1 for i in range(4)) for number in range(8)]
        drawn = {mix(x.clone(), y, key=key)[1].numpy().tobytes() for key in keys}
        assert len(drawn) > 1, f"all {name} have the same draw"


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}, {"eventmix": 1.0}], ids=str)
def test_from_the_off_epoch_on_only_labels_are_smoothed(options):
    mix, x, y = mixer("digits_events", **options, mixup_off_epoch=5), *clips()
    assert any(not torch.equal(mix(x.clone(), y, key=(1, 4, step, 0))[0], x) for step in range(5))
    smoothed = torch.nn.functional.one_hot(y, 10) * 0.9 + 0.01
    for epoch in (5, 6):
        mixed, target = mix(x.clone(), y, key=(1, epoch, 0, 0))
        assert torch.equal(mixed, x)
        torch.testing.assert_close(target, smoothed)
    assert any(not torch.equal(mix(x.clone(), y, key=(1, 4, step, 0))[0], x) for step in range(5)), (
        "a resumed epoch 4 mixes again"
    )


def test_a_sample_without_a_partner_stays_as_it_is():
    mix, x, y = mixer("digits_events", mixup=0.5), *clips(7)
    (mixed, target), (even, wanted) = mix(x.clone(), y, key=KEY), mix(x[:6].clone(), y[:6], key=KEY)
    assert torch.equal(mixed[:6], even) and torch.equal(target[:6], wanted)
    assert torch.equal(mixed[6], x[6]) and target[6, y[6]] == pytest.approx(0.91)


def test_cutmix_cuts_all_frames_of_a_clip_alike():
    mix, (x, y) = mixer("digits_events", cutmix=1.0), clips(2)
    cut = (mix(x.clone(), y, key=KEY)[0] != x).flatten(1, 2)
    foreign = cut.any(1)  # [B, H, W]
    rows, columns = foreign[0].any(1).nonzero(), foreign[0].any(0).nonzero()
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    mixed = mix(x.clone(), y, key=KEY)[0]
    assert torch.equal(mixed[0][..., box[0], box[1]], x[1][..., box[0], box[1]])
    assert torch.equal(mixed[1][..., box[0], box[1]], x[0][..., box[0], box[1]])


def test_eventmix_labels_are_shares_of_events():
    mix, x, y = mixer("digits_events", eventmix=1.0, label_smoothing=0.0), *clips()
    mixed, target = mix(x, y, key=KEY)
    masks = torch.from_numpy(mix.masks(np.random.default_rng(KEY), 8, (4, 16, 16)))[:, :, None]
    for i in range(8):
        mask = masks[i].expand_as(x[i])
        assert torch.equal(mixed[i][mask], x[i][mask]) and torch.equal(mixed[i][~mask], x[7 - i][~mask])
        share = (x[i][mask].sum() / mixed[i].sum()).item()
        assert target[i, y[i]].item() == pytest.approx(share, abs=1e-6)
        assert target[i, y[7 - i]].item() == pytest.approx(1 - share, abs=1e-6)


def test_eventmix_masks_cover_the_drawn_share_and_hang_together():
    mix = mixer("digits_events", eventmix=1.0)
    draw = np.random.default_rng(0)
    masks = mix.masks(draw, 200, (4, 16, 16))
    shares = masks.reshape(200, -1).mean(1)
    assert abs(shares.mean() - 0.5) < 0.06 and shares.min() < 0.05 and shares.max() > 0.95, "Beta(1, 1) is uniform"
    inner = masks[(shares > 0.3) & (shares < 0.7)]
    equal = (inner[..., 1:] == inner[..., :-1]).mean()
    assert equal > 0.9, "regions, not noise"
    off = mixer("digits_events", eventmix=1.0, mixup_prob=0.0)
    assert off.masks(np.random.default_rng(0), 5, (4, 16, 16)).all()


def test_eventmix_of_empty_clips_keeps_labels():
    mix, y = mixer("digits_events", eventmix=1.0, label_smoothing=0.0), torch.tensor([1, 2])
    mixed, target = mix(torch.zeros(2, 4, 2, 16, 16), y, key=KEY)
    assert not mixed.any() and target[0, 1] == 1 and target[1, 2] == 1
    assert isinstance(mix, EventMix)
