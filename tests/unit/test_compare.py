"""Comparison of models on the same samples."""

import numpy as np
import pytest
from evaluated import make_run

from statten.config import UserError
from statten.evaluation.compare import compare, interval, pair


def test_a_small_gain_is_noise_and_a_large_one_is_not():
    generator = np.random.default_rng(0)
    a = np.zeros(1000, dtype=bool)
    a[:900] = True
    b = a.copy()
    b[:30], b[900:933] = False, True  # 33 gained, 30 lost: + 0.3 points
    small = pair(a, b, 20_000, generator)
    assert small["difference"] == pytest.approx(0.3) and (small["only_a"], small["only_b"]) == (30, 33)
    assert small["interval"][0] < 0 < small["interval"][1] and not small["significant"] and small["mcnemar_p"] > 0.7
    b[900:960] = True  # 60 gained, 30 lost
    large = pair(a, b, 20_000, generator)
    assert large["difference"] == pytest.approx(3.0) and large["interval"][0] > 0 and large["significant"]
    # Two-sided binomial test of 60 in 90, by its definition.
    from math import comb

    assert large["mcnemar_p"] == pytest.approx(2 * sum(comb(90, k) for k in range(60, 91)) / 2**90, rel=1e-9)
    assert pair(a, a, 100, generator)["mcnemar_p"] == 1.0


def test_the_bootstrap_is_that_over_samples():
    generator = np.random.default_rng(1)
    a, b = generator.random(400) < 0.8, generator.random(400) < 0.7
    at = generator.integers(0, 400, (20_000, 400))
    plain = 100 * (b[at].mean(1) - a[at].mean(1))
    ours = pair(a, b, 20_000, generator)["interval"]
    assert ours == pytest.approx(np.quantile(plain, [0.025, 0.975]).tolist(), abs=0.3)
    assert interval(a, 20_000, generator) == pytest.approx(np.quantile(100 * a[at].mean(1), [0.025, 0.975]).tolist(), abs=0.3)


def test_runs_are_evaluated_and_compared(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", train__seed=7)
    report = compare([one.path, two.path])
    assert [m["name"] for m in report["models"]] == ["one (T=4, b=2)", "two (T=4, b=2)"]
    gain = report["models"][1]["top1"] - report["models"][0]["top1"]
    assert report["pairs"][0]["difference"] == pytest.approx(gain)
    other = make_run(tmp_path / "other", data__split_seed=3)
    with pytest.raises(UserError, match="was evaluated on other samples than"):
        compare([one.path, other.path])
    with pytest.raises(UserError, match="takes two or more targets, but got 1"):
        compare([one.path])
