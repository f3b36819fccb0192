"""Comparison of models on the same samples."""

import json

import numpy as np
import pytest
from evaluated import make_run
from scipy.stats import t

from statten.errors import UserError
from statten.evaluation.compare import bootstrap, compare, compare_summary, group_pair, pair, wilson


def test_a_small_gain_is_noise_and_a_large_one_is_not():
    a = np.zeros(1000, dtype=bool)
    a[:900] = True
    b = a.copy()
    b[:30], b[900:933] = False, True  # 33 gained, 30 lost: + 0.3 points
    small = pair(a, b)
    assert small["difference"] == pytest.approx(0.3) and (small["only_a"], small["only_b"]) == (30, 33)
    assert small["interval"][0] < 0 < small["interval"][1] and not small["significant"] and small["mcnemar_p"] > 0.7
    b[900:960] = True  # 60 gained, 30 lost
    large = pair(a, b)
    assert large["difference"] == pytest.approx(3.0) and large["interval"][0] > 0 and large["significant"]
    # Two-sided binomial test of 60 in 90, by its definition.
    from math import comb

    assert large["mcnemar_p"] == pytest.approx(2 * sum(comb(90, k) for k in range(60, 91)) / 2**90, rel=1e-9)
    assert pair(a, a)["mcnemar_p"] == 1.0


def test_the_bootstrap_is_that_over_samples():
    generator = np.random.default_rng(1)
    a, b = generator.random(400) < 0.8, generator.random(400) < 0.7
    at = generator.integers(0, 400, (20_000, 400))
    plain = 100 * (b[at].mean(1) - a[at].mean(1))
    gains = b.astype(float) - a
    ours = bootstrap(gains, 20_000, 0)
    assert ours == pytest.approx(np.quantile(plain, [0.025, 0.975]).tolist(), abs=0.3)
    assert pair(a, b)["interval"] == pytest.approx(ours, abs=0.8), "McNemar's is a little wider, for it is exact"
    assert wilson(a) == pytest.approx(np.quantile(100 * a[at].mean(1), [0.025, 0.975]).tolist(), abs=0.5)
    for found in (gains, np.array([0.5, -0.5, 0, 0, 1, -1]), np.array([0.5, 0.5, -1.0])):  # the sum of these is 0
        low, high = bootstrap(found, 500, 0)
        assert bootstrap(-found, 500, 0) == [-high, -low], "the other way round it is the same"


def test_the_interval_agrees_with_the_verdict():
    for apart in range(1, 60):
        for only_b in range(apart + 1):
            a, b = np.zeros((2, 100), dtype=bool)
            b[:only_b], a[only_b:apart] = True, True
            found = pair(a, b)
            low, high = found["interval"]
            assert found["significant"] == (low > 0 or high < 0) and low <= found["difference"] <= high


def test_an_accuracy_has_wilsons_interval():
    right = np.arange(10) < 10
    z = 1.959963984540054
    assert wilson(right) == pytest.approx([100 * 10 / (10 + z * z), 100]) and wilson(~right)[0] == 0


def test_a_pair_has_the_same_numbers_in_every_list(tmp_path):
    one, two, three = (make_run(tmp_path / name, train__seed=seed) for seed, name in enumerate(("one", "two", "three")))
    both = compare([[one.path, two.path], three.path], resamples=500)
    more = compare([three.path, [one.path, two.path], one.path], resamples=500)
    (pair_of,), turned = both["pairs"], more["pairs"][0]
    assert turned["difference"] == pytest.approx(-pair_of["difference"])
    assert turned["interval"] == pytest.approx([-v for v in reversed(pair_of["interval"])])
    assert {m["name"]: m["top1_interval"] for m in both["models"]}.items() <= {
        m["name"]: m["top1_interval"] for m in more["models"]
    }.items()


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


def test_seeds_that_scatter_more_than_models_differ_are_noise():
    generator = np.random.default_rng(2)

    def group(*rates):
        return np.stack([generator.permutation(np.arange(5000) < round(5000 * rate)) for rate in rates])

    a, near, far = group(0.80, 0.83, 0.77), group(0.81, 0.84, 0.78), group(0.90, 0.93, 0.87)
    small = group_pair(a, near, 2000)
    assert small["difference"] == pytest.approx(1.0) and not small["significant"]
    assert small["verdict"] == "noise: the seeds scatter as much as the two differ"
    # Welch by hand: both standard deviations are 0.03 over 3 seeds, so t = 0.01 / (0.03 sqrt(2 / 3)) with 4 degrees of freedom.
    low, high = small["seeds_interval"]
    assert low < 0 < high and small["decides"] == "seeds"
    assert small["welch_p"] == pytest.approx(2 * t.sf(0.01 / (0.03 * (2 / 3) ** 0.5), 4), rel=1e-9)
    large = group_pair(a, far, 2000)
    assert large["significant"] and large["verdict"] == "a real difference" and large["interval"][0] > 0
    assert large["seeds_interval"][0] > 0 and large["decides"] == "samples and seeds"
    alone = group_pair(a, far[:1], 2000)
    assert alone["welch_p"] is None and not alone["significant"] and "has a single seed" in alone["verdict"]
    same = np.stack([a[0], a[0]])
    assert group_pair(same, same, 100)["welch_p"] == 1.0
    assert group_pair(same, same[:, ::-1], 2000)["verdict"].startswith("noise")


def test_the_bootstrap_of_groups_is_that_over_samples():
    generator = np.random.default_rng(3)
    a, b = generator.random((3, 400)) < 0.8, generator.random((2, 400)) < 0.7
    at = generator.integers(0, 400, (20_000, 400))
    gain = b.mean(0) - a.mean(0)
    plain = np.quantile(100 * gain[at].mean(1), [0.025, 0.975]).tolist()
    found = group_pair(a, b, 20_000)
    assert found["interval"] == pytest.approx(plain, abs=0.3) and found["difference"] == pytest.approx(100 * gain.mean())


def test_groups_of_runs_are_one_model_under_several_seeds(tmp_path, typed, capsys):
    runs = [make_run(tmp_path / f"r{seed}", train__seed=seed) for seed in range(3)]
    other = make_run(tmp_path / "wide", model__mlp_ratio=1)
    code, out, _ = typed("compare", "r0,r1,r2", "wide", "--storage", tmp_path, "--json")
    assert code == 0
    report = json.loads(out)
    top1 = [m["top1"] for m in report["models"]]
    assert [g["seeds"] for g in report["groups"]] == [3, 1] and report["groups"][0]["name"] == "r0, r1, r2"
    assert report["groups"][0]["top1_mean"] == pytest.approx(np.mean(top1[:3]))
    assert report["groups"][0]["top1_std"] == pytest.approx(np.std(top1[:3], ddof=1))
    assert report["pairs"][0]["difference"] == pytest.approx(top1[3] - np.mean(top1[:3]))
    compare_summary(report)
    shown = "".join(capsys.readouterr())
    assert "over 3 seeds" in shown and "top-5" in shown and "over seeds (Welch's t-test), for these scatter" in shown
    compare_summary({**report, "classes": 5})
    assert "top-5" not in "".join(capsys.readouterr())
    with pytest.raises(UserError, match=r"wide: is not the same model as .*r0 under another seed: model\.mlp_ratio is 1"):
        compare([[runs[0].path, other.path], runs[1].path])
    with pytest.raises(UserError, match=r"r0: has the same train\.seed=0 as .*r0; name each seed once"):
        compare([[runs[0].path, runs[0].path], runs[1].path])
