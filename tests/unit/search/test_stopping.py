"""Stopping rules: pure functions of what the study knows."""

import pytest

from statten.config import SearchConfig
from statten.search.stopping import Done, Rival, dominated, underperforming, unhealthy


def rival(number, *values):
    return Rival(number, dict(enumerate(values, start=1)))


def search(**fields):
    return SearchConfig(**{"grace_epochs": 1, "reduction_factor": 3, "startup_trials": 2, **fields})


def test_asha_keeps_the_best_third_at_each_rung():
    rivals = [rival(n, 10.0 * n) for n in range(1, 9)]  # 10 .. 80
    assert underperforming(search(), 9, rival(0, 95), rivals) is None
    assert underperforming(search(), 9, rival(0, 65), rivals) is None, "three of nine go on: 80, 70 and this one"
    assert "65 is not among" not in str(underperforming(search(), 9, rival(0, 65), rivals))
    assert underperforming(search(), 9, rival(0, 55), rivals) == (
        "stopped at epoch 1: val/top1 55 is not among the best 3 of 9 at this rung"
    )
    assert underperforming(search(), 9, rival(0, 5, 5), rivals) is None, "epoch 2 is no rung"
    assert underperforming(search(), 9, rival(0, 5, 5, 5), [rival(1, 9, 9, 9)]) is not None, "epoch 3 is"
    assert underperforming(search(), 9, rival(0, 5), []) is None, "the first goes on"


def test_a_trial_is_judged_by_its_best_epoch_so_far_and_by_the_direction():
    assert underperforming(search(grace_epochs=3), 9, rival(0, 50, 90, 20), [rival(1, 60, 60, 60)]) is None
    losses = search(objectives=["val/loss"])
    assert underperforming(losses, 9, rival(0, 0.2), [rival(1, 0.5)]) is None
    assert "val/loss 0.9" in underperforming(losses, 9, rival(0, 0.9), [rival(1, 0.5)])


def test_median_waits_for_enough_trials():
    rule = search(scheduler="median")
    assert underperforming(rule, 9, rival(0, 1), [rival(1, 50)]) is None
    assert "below the median of 2 trials" in underperforming(rule, 9, rival(0, 1), [rival(1, 50), rival(2, 60)])
    assert underperforming(rule, 9, rival(0, 56), [rival(1, 50), rival(2, 60)]) is None


def test_hyperband_compares_within_a_bracket_whose_first_rung_is_later():
    rule, strong = search(scheduler="hyperband"), [rival(n, *[90.0] * 9) for n in range(1, 10)]
    assert underperforming(rule, 9, rival(12, 5), strong) is not None, "bracket 0 of 3 judges at epoch 1"
    assert underperforming(rule, 9, rival(13, 5), strong) is None, "bracket 1 does not"
    assert underperforming(rule, 9, rival(13, 5, 5, 5), strong) is not None, "but at epoch 3"
    assert underperforming(rule, 9, rival(13, 5, 5, 5), [r for r in strong if r.number % 3 != 1]) is None, "others do not count"


def both(top1, energy):
    return {"val/top1": top1, "energy_uj": energy}


def test_a_trial_goes_on_while_its_best_case_may_be_on_the_front():
    rule = search(objectives=["val/top1", "energy_uj"])
    # Each gained 10 points and saved 0.1 uJ after its first epoch.
    done = [Done([both(a - 10, e + 0.1), both(a, e)], [a, e]) for a, e in ((90, 4.0), (80, 3.0), (70, 2.0), (60, 1.0))]
    assert dominated(rule, [both(85, 3.9)], done) is None, "95 would be the most accurate"
    assert dominated(rule, [both(30, 0.9)], done) is None, "it may be the cheapest"
    reason = dominated(rule, [both(55, 3.6)], done)
    assert reason.startswith("stopped at epoch 1: even its best case (val/top1 65, energy_uj 3.5)"), "80 for 3.0 is better"
    assert dominated(rule, [both(55, 3.6)], done[:3]) is None, "three finished trials are too few to know"
    assert dominated(search(objectives=["val/top1", "energy_uj"], grace_epochs=2), [both(55, 3.6)], done) is None


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"firing_rate/embed.0": 0.0}, "layer embed.0 is dead, its firing rate is 0"),
        ({"firing_rate/head": 1.0}, "layer head is saturated, its firing rate is 1"),
        ({"val/loss": 24.0}, "it diverges, val/loss 24"),
        ({}, None),
    ],
)
def test_networks_that_cannot_recover_are_stopped(row, sentence):
    well = {"val/loss": 2.0, "firing_rate/embed.0": 0.2, "firing_rate/head": 0.1}
    ill = {**well, **row}

    def judged(*rows, steps=100, **fields):
        counted = [{**row, "steps": steps * epoch} for epoch, row in enumerate(rows, start=1)]
        return unhealthy(search(**fields), counted, classes=10)

    found = judged(well, ill, ill)
    assert found is None if sentence is None else sentence in found
    assert judged(ill) is None and judged(well, ill) is None, "once may be chance"
    assert judged(well, ill, ill, grace_epochs=3) is None
    assert judged(*[ill] * 8, steps=13) is None, "an epoch of 13 steps proves nothing: the seventh of these ends at step 91"
    assert judged(*[ill] * 9, steps=13) == (found and found.replace("epoch 3", "epoch 9"))
    if sentence and "layer" in sentence:
        assert judged(well, ill, ill, firing_range=None) is None
