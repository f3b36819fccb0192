"""Models side by side on the same test samples: how sure their accuracies and differences are.

A bootstrap over samples draws n of the n samples with replacement. For top-1 that is a multinomial draw of how many samples
both models get right, one alone, the other alone, and neither: exact, and as quick for 50,000 samples as for 50.

McNemar's exact test asks only the samples on which two models differ: if neither is better, each is right on half of them.

Runs of one model under several seeds form a group. Welch's t-test asks whether two groups' accuracies differ by more than their
seeds scatter; the bootstrap over samples then draws each sample with the share of a group's seeds that are right on it.
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
        seeds; `pairs` of groups: difference in points with its interval, McNemar's p or Welch's, `significant`, verdict.
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
    generator, models, summaries, rights = np.random.default_rng(seed), [], [], []
    for group, members, parts in zip(groups, targets, found, strict=True):
        right = np.stack([(part.column("rank") < 1).numpy() for part in parts])  # [seeds, n]
        for path, target, part, r in zip(group, members, parts, right, strict=True):
            top1 = interval(r, resamples, generator)
            models.append({"name": _name(target), "target": str(path), **accuracy(part), "top1_interval": top1})
        name = ", ".join(target.name for target in members) if len(members) > 1 else _name(members[0])
        summaries.append({"name": name, **spread(100 * right.mean(1))})
        rights.append(right)
    pairs = [
        {"a": summaries[i]["name"], "b": summaries[j]["name"], **group_pair(rights[i], rights[j], resamples, generator)}
        for i, j in combinations(range(len(groups)), 2)
    ]
    about = {"samples": first.samples, "level": LEVEL, "resamples": resamples}
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


def group_pair(a: np.ndarray, b: np.ndarray, resamples: int, generator: np.random.Generator) -> dict[str, Any]:
    """Two models, each under one or more seeds, on the same n samples: b's gain over a in points, and whether it is noise.

    Args:
        a, b: whether each sample is right under each seed, bool [seeds, n].
    """
    if len(a) == len(b) == 1:
        alone = pair(a[0], b[0], resamples, generator)
        return {**alone, "verdict": _REAL if alone["significant"] else "noise: these samples do not tell them apart"}
    values, counts = np.unique(np.round(b.mean(0) - a.mean(0), 12), return_counts=True)
    draws = generator.multinomial(counts.sum(), counts / counts.sum(), resamples) @ values
    low, high = _interval(draws * (100 / counts.sum()))
    by_samples, p = low > 0 or high < 0, welch(a.mean(1), b.mean(1))
    if p is None:
        verdict = "noise: these samples do not tell them apart"
        if by_samples:
            verdict = "beyond the noise of the samples, but one of them has a single seed, so that of the seeds is not known"
    elif p >= 1 - LEVEL:
        verdict = "noise: the seeds scatter as much as the two differ"
    else:
        verdict = _REAL if by_samples else "noise: these samples do not tell them apart, though the seeds do"
    return {
        "difference": float(100 * (b.mean() - a.mean())),
        "interval": [low, high],
        "welch_p": p,
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


def interval(right: np.ndarray, resamples: int, generator: np.random.Generator) -> list[float]:
    """Bootstrap interval of top-1 in percent, from whether each sample is right [n]."""
    return _interval(generator.binomial(len(right), right.mean(), resamples) * (100 / len(right)))


def pair(a: np.ndarray, b: np.ndarray, resamples: int, generator: np.random.Generator) -> dict[str, Any]:
    """Two models on the same n samples: b's gain over a in points, its bootstrap interval, McNemar's exact p.

    Args:
        a, b: whether each sample is right, bool [n].
    """
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    draws = generator.multinomial(n, [only_a / n, only_b / n, 1 - (only_a + only_b) / n], resamples)
    p = float(binomtest(only_b, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return {
        "difference": 100 * (only_b - only_a) / n,
        "interval": _interval((draws[:, 1] - draws[:, 0]) * (100 / n)),
        "only_a": only_a,
        "only_b": only_b,
        "mcnemar_p": p,
        "significant": p < 1 - LEVEL,
    }


def _interval(values: np.ndarray) -> list[float]:
    tail = (1 - LEVEL) / 2
    return [float(v) for v in np.quantile(values, [tail, 1 - tail])]


def compare_summary(report: dict[str, Any]) -> None:
    """Print what `compare` found."""
    percent = f"{100 * report['level']:.0f} %"
    rows = [
        [m["name"], f"{m['top1']:.2f}", "{:.2f} to {:.2f}".format(*m["top1_interval"]), f"{m['top5']:.2f}", f"{m['loss']:.4f}"]
        for m in report["models"]
    ]
    console.print(table("", ["model", "top-1 %", f"{percent} interval", "top-5 %", "loss"], rows, right=range(1, 5)))
    console.print(f"{report['samples']} samples, bootstrap of {report['resamples']} resamples\n")
    several = [g for g in report["groups"] if g["seeds"] > 1]
    for g in several:
        console.print(f"{g['name']}: top-1 {g['top1_mean']:.2f} % ± {g['top1_std']:.2f} over {g['seeds']} seeds")
    console.print("", end="\n" if several else "")
    for p in report["pairs"]:
        low, high = p["interval"]
        if "mcnemar_p" in p:
            how = f"alone right on {p['only_b']} and {p['only_a']}, McNemar p = {p['mcnemar_p']:.3g}"
        else:
            how = "no test over seeds" if p["welch_p"] is None else f"Welch over seeds p = {p['welch_p']:.3g}"
        console.print(
            f"{p['b']} against {p['a']}: {p['difference']:+.2f} points ({percent} over samples {low:+.2f} to {high:+.2f}); "
            f"{how}: [bold]{p['verdict']}[/]"
        )
