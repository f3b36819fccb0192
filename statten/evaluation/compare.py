"""Models side by side on the same test samples: how sure their accuracies and differences are.

An accuracy has Wilson's interval, which stays between 0 and 100 % and holds for few samples too.

For two runs McNemar's exact test decides. It asks only the samples on which one of them alone is right: if neither is better,
each is right on half of these. The interval of the difference is that test turned round (Clopper and Pearson's, of the share of
these samples that one gets right), so it leaves out 0 exactly where the test calls the difference real.

Runs of one model under several seeds form a group. A difference of groups is real where two intervals leave out 0: that of
Welch's t-test, for the seeds scatter, and that of a bootstrap over samples, for these may be lucky ones. The bootstrap draws
each sample with the share of a group's seeds that are right on it; every pair draws anew, so its numbers are those of any list.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, ttest_ind

from statten.display import console, table
from statten.errors import UserError
from statten.evaluation.evaluator import evaluate, home, place
from statten.evaluation.measure import Measured, load
from statten.evaluation.report import accuracy
from statten.evaluation.targets import Target, open_target

LEVEL = 0.95
_REAL = "a real difference"


def compare(
    paths: Sequence[Path | str | Sequence[Path | str]], overrides: Iterable[str] | Mapping[str, Any] = (), *,
    data: str | None = None, ema: bool = True, resamples: int = 10_000, seed: int = 0, storage: Path | None = None,
    output: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate two or more targets (those that are not yet), and compare them sample by sample.

    Args:
        paths: as in `evaluate`, overrides, data, ema, storage and output too; a sequence of paths is one model under
            several seeds.
        resamples: of the bootstrap.
        seed: of its draws.

    Returns:
        `models`: top1 with its 95 % interval, loss, of every run; `groups`: mean and spread (standard deviation) of top1 over
        seeds; `pairs` of groups: difference in points with its interval, McNemar's p or Welch's with the interval over seeds,
        what `decides`, `significant`, verdict.
    """
    if len(paths) < 2:
        raise UserError(f"compare: takes two or more targets, but got {len(paths)}")
    overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
    groups = [[path] if isinstance(path, Path | str) else list(path) for path in paths]
    targets = [[open_target(Path(path), overrides, data, ema) for path in group] for group in groups]
    for group, members in zip(groups, targets, strict=True):  # all mistakes before the first evaluation
        _check_seeds(group, members)
        for target in members:
            if _kept(target, storage, output) is None:
                place(target, storage, output)
    found = [
        [_records(path, target, overrides, data, ema, storage, output) for path, target in zip(*both, strict=True)]
        for both in zip(groups, targets, strict=True)
    ]
    first = found[0][0]
    for path, other in zip(chain(*groups), chain(*found), strict=True):
        if not (torch.equal(first.index, other.index) and torch.equal(first.column("label"), other.column("label"))):
            raise UserError(f"{path}: was evaluated on other samples than {groups[0][0]}; give both the same data and split")
    models, summaries, rights = [], [], []
    for group, members, parts in zip(groups, targets, found, strict=True):
        right = np.stack([(part.column("rank") < 1).numpy() for part in parts])  # [seeds, n]
        for path, target, part, r in zip(group, members, parts, right, strict=True):
            models.append({"name": _name(target), "target": str(path), **accuracy(part), "top1_interval": wilson(r)})
        name = ", ".join(target.name for target in members) if len(members) > 1 else _name(members[0])
        summaries.append({"name": name, **spread(100 * right.mean(1))})
        rights.append(right)
    pairs = [
        {"a": summaries[i]["name"], "b": summaries[j]["name"], **group_pair(rights[i], rights[j], resamples, seed)}
        for i, j in combinations(range(len(groups)), 2)
    ]
    classes = max(target.config.model.num_classes for target in chain(*targets))
    about = {"samples": first.samples, "classes": classes, "level": LEVEL, "resamples": resamples}
    return {**about, "models": models, "groups": summaries, "pairs": pairs}


def _name(target: Target) -> str:
    return f"{target.name} (T={target.config.model.timesteps}, b={target.config.model.block_size})"


def _kept(target: Target, storage: Path | None, output: Path | None) -> Path | None:
    """Records of an earlier evaluation, wherever they were written."""
    places = [home(target, storage, place) / "samples.safetensors" for place in (output, None)]
    return next((path for path in places if path.is_file()), None)


def _records(
    path: Path | str, target: Target, overrides: Any, data: str | None, ema: bool, storage: Path | None, output: Path | None
) -> Measured:
    if (samples := _kept(target, storage, output)) is None:
        report = evaluate(path, overrides, data=data, ema=ema, storage=storage, output=output)
        samples = Path(report["folder"]) / "samples.safetensors"
    return load(samples)


def _check_seeds(group: Sequence[Path | str], members: Sequence[Target]) -> None:
    """Raise UserError unless the members are one model and training under different seeds."""
    first = members[0]
    for path, other in zip(group[1:], members[1:], strict=True):
        for part in ("model", "train"):
            ours, theirs = getattr(first.config, part), getattr(other.config, part)
            for name in type(ours).model_fields:
                a, b = getattr(ours, name), getattr(theirs, name)
                if a != b and (part, name) != ("train", "seed"):
                    raise UserError(
                        f"{path}: is not the same model as {group[0]} under another seed: {part}.{name} is {b}, not {a}; "
                        f"put a space between them to compare them"
                    )
    seeds = [member.config.train.seed for member in members]
    for i, (path, seed) in enumerate(zip(group, seeds, strict=True)):
        if seed in seeds[:i]:
            raise UserError(f"{path}: has the same train.seed={seed} as {group[seeds.index(seed)]}; name each seed once")


def spread(top1: np.ndarray) -> dict[str, Any]:
    """Mean of top-1 [seeds] and its standard deviation over seeds, which one seed does not tell."""
    deviation = float(top1.std(ddof=1)) if len(top1) > 1 else None
    return {"seeds": len(top1), "top1_mean": float(top1.mean()), "top1_std": deviation, "top1": top1.tolist()}


def group_pair(a: np.ndarray, b: np.ndarray, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Two models, each under one or more seeds, on the same n samples: b's gain over a in points, and whether it is noise.

    Args:
        a, b: whether each sample is right under each seed, bool [seeds, n].
        resamples: of the bootstrap over samples, which groups of several seeds need.
        seed: of its draws.
    """
    if len(a) == len(b) == 1:
        alone = pair(a[0], b[0])
        return {**alone, "verdict": _REAL if alone["significant"] else "noise: these samples do not tell them apart"}
    low, high = bootstrap(b.mean(0) - a.mean(0), resamples, seed)
    by_samples, p, decides = low > 0 or high < 0, welch(a.mean(1), b.mean(1)), "samples and seeds"
    if p is None:
        decides = "samples"
        verdict = "noise: these samples do not tell them apart"
        if by_samples:
            verdict = "beyond the noise of the samples, but one of them has a single seed, so that of the seeds is not known"
    elif p >= 1 - LEVEL:
        verdict, decides = "noise: the seeds scatter as much as the two differ", "seeds"
    else:
        verdict = _REAL
        if not by_samples:
            verdict, decides = "noise: these samples do not tell them apart, though the seeds do", "samples"
    return {
        "difference": float(100 * (b.mean() - a.mean())),
        "interval": [low, high],
        "seeds_interval": welch_interval(a.mean(1), b.mean(1)),
        "welch_p": p,
        "decides": decides,
        "significant": by_samples and p is not None and p < 1 - LEVEL,
        "verdict": verdict,
    }


def welch(a: np.ndarray, b: np.ndarray) -> float | None:
    """Two-sided p of Welch's t-test for accuracies under several seeds; None where one of them has a single seed."""
    if min(len(a), len(b)) < 2:
        return None
    if a.std() == b.std() == 0:  # which the test divides by
        return 1.0 if a[0] == b[0] else 0.0
    return float(ttest_ind(a, b, equal_var=False).pvalue)


def welch_interval(a: np.ndarray, b: np.ndarray) -> list[float] | None:
    """Welch's interval of b's gain over a in points; None where `welch` is."""
    if min(len(a), len(b)) < 2:
        return None
    if a.std() == b.std() == 0:
        return [float(100 * (b[0] - a[0]))] * 2
    found = ttest_ind(b, a, equal_var=False).confidence_interval(LEVEL)
    return [float(100 * found.low), float(100 * found.high)]


def wilson(right: np.ndarray) -> list[float]:
    """Wilson's interval of top-1 in percent, from whether each sample is right [n]."""
    found = binomtest(int(right.sum()), len(right)).proportion_ci(LEVEL, method="wilson")
    return [float(100 * found.low), float(100 * found.high)]


def bootstrap(gains: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Bootstrap interval of the mean of every sample's gain [n], in points.

    It is the mean of what is drawn of gains and of losses, so that two models turned round have the same interval turned round.
    """
    (low, high), (lost_low, lost_high) = _drawn(gains, resamples, seed), _drawn(-gains, resamples, seed)
    return [(low - lost_high) / 2, (high - lost_low) / 2]


def _drawn(gains: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Ends of the interval.

    A draw of n of the n samples is a multinomial one of how often each value comes: as quick for 50,000 samples as for 50.
    """
    values, counts = np.unique(np.round(gains, 12), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), resamples) @ values
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws * (100 / counts.sum()), [tail, 1 - tail])
    return float(low), float(high)


def pair(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Two models on the same n samples: b's gain over a in points, McNemar's exact p, and the interval that belongs to it.

    Args:
        a, b: whether each sample is right, bool [n].
    """
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    p, low, high = 1.0, 0.0, 0.0
    if apart := only_a + only_b:
        test = binomtest(only_b, apart, 0.5)
        share = test.proportion_ci(LEVEL, method="exact")
        p, low, high = (float(v) for v in (test.pvalue, *(100 * apart * (2 * s - 1) / n for s in (share.low, share.high))))
    return {
        "difference": 100 * (only_b - only_a) / n,
        "interval": [low, high],
        "only_a": only_a,
        "only_b": only_b,
        "mcnemar_p": p,
        "decides": "mcnemar",
        "significant": p < 1 - LEVEL,
    }


def compare_summary(report: dict[str, Any]) -> None:
    """Print what `compare` found."""
    percent = f"{100 * report['level']:.0f} %"
    top5 = ["top5"] if report["classes"] > 5 else []  # of five classes it is always 100 %
    rows = [
        [m["name"], f"{m['top1']:.2f}", "{:.2f} to {:.2f}".format(*m["top1_interval"]), *[f"{m[name]:.2f}" for name in top5],
         f"{m['loss']:.4f}"]
        for m in report["models"]
    ]  # fmt: skip
    columns = ["model", "top-1 %", f"{percent} interval", *["top-5 %" for _ in top5], "loss"]
    console.print(table("", columns, rows, right=range(1, len(columns))))
    console.print(f"{report['samples']} samples; intervals of an accuracy are Wilson's\n")
    several = [g for g in report["groups"] if g["seeds"] > 1]
    for g in several:
        console.print(f"{g['name']}: top-1 {g['top1_mean']:.2f} % ± {g['top1_std']:.2f} over {g['seeds']} seeds")
    console.print("", end="\n" if several else "")
    for p in report["pairs"]:
        interval = _range(p["interval"])
        if "mcnemar_p" in p:
            how = f"alone right on {p['only_b']} and {p['only_a']}, McNemar p = {p['mcnemar_p']:.3g}"
        elif p["welch_p"] is None:
            interval, how = f"over samples {interval}", "no test over seeds"
        else:
            interval = f"over samples {interval}, over seeds {_range(p['seeds_interval'])}"
            how = f"Welch over seeds p = {p['welch_p']:.3g}"
        console.print(
            f"{p['b']} against {p['a']}: {p['difference']:+.2f} points ({percent} {interval}); {how}: [bold]{p['verdict']}[/]"
        )
    if any("mcnemar_p" in p for p in report["pairs"]):
        console.print(
            "McNemar's exact test decides, for both were asked the same samples: those on which one alone is right tell them "
            "apart. Its interval leaves out 0 where it calls a difference real"
        )
    if any("welch_p" in p for p in report["pairs"]):
        console.print(
            "of several seeds a difference is real where both intervals leave out 0: over samples (bootstrap), for these may "
            "be lucky ones, and over seeds (Welch's t-test), for these scatter"
        )


def _range(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:+.2f} to {high:+.2f}"
