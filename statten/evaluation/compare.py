"""Models side by side on the same test samples: how sure their accuracies and differences are.

A bootstrap over samples draws n of the n samples with replacement. For top-1 that is a multinomial draw of how many samples
both models get right, one alone, the other alone, and neither: exact, and as quick for 50,000 samples as for 50.

McNemar's exact test asks only the samples on which two models differ: if neither is better, each is right on half of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from statten.config import UserError
from statten.display import console, table
from statten.evaluation.measure import Measured, load
from statten.evaluation.report import accuracy
from statten.evaluation.targets import open_target

LEVEL = 0.95


def compare(
    paths: Sequence[Path | str], overrides: Iterable[str] | Mapping[str, Any] = (), *, data: str | None = None,
    ema: bool = True, resamples: int = 10_000, seed: int = 0, storage: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate two or more targets (those that are not yet), and compare them sample by sample.

    Args:
        paths: as in `evaluate`, overrides, data, ema and storage too.
        resamples: of the bootstrap.
        seed: of its draws.

    Returns:
        `models`: top1 with its 95 % interval, loss; `pairs`: difference in points with its interval, McNemar's p, verdict.
    """
    from statten.evaluation import evaluate, home

    if len(paths) < 2:
        raise UserError(f"compare: takes two or more targets, but got {len(paths)}")
    overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
    targets = [open_target(Path(path), overrides, data, ema) for path in paths]  # all mistakes before the first evaluation
    found: list[Measured] = []
    for path, target in zip(paths, targets, strict=True):
        samples = home(target, storage) / "samples.safetensors"
        if not samples.is_file():
            evaluate(path, overrides, data=data, ema=ema, storage=storage)
        found.append(load(samples))
    first = found[0]
    for path, other in zip(paths[1:], found[1:], strict=True):
        if not (torch.equal(first.index, other.index) and torch.equal(first.column("label"), other.column("label"))):
            raise UserError(f"{path}: was evaluated on other samples than {paths[0]}; give both the same data and split")
    right = [(part.column("rank") < 1).numpy() for part in found]
    names = [f"{target.name} (T={target.config.model.timesteps}, b={target.config.model.block_size})" for target in targets]
    generator = np.random.default_rng(seed)
    models = [
        {"name": name, "target": str(path), **accuracy(part), "top1_interval": interval(r, resamples, generator)}
        for name, path, part, r in zip(names, paths, found, right, strict=True)
    ]
    pairs = [
        {"a": names[i], "b": names[j], **pair(right[i], right[j], resamples, generator)}
        for i, j in combinations(range(len(paths)), 2)
    ]
    return {"samples": first.samples, "level": LEVEL, "resamples": resamples, "models": models, "pairs": pairs}


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
    for p in report["pairs"]:
        verdict = "a real difference" if p["significant"] else "noise: these samples do not tell them apart"
        low, high = p["interval"]
        console.print(
            f"{p['b']} against {p['a']}: {p['difference']:+.2f} points ({percent} {low:+.2f} to {high:+.2f}); alone right on "
            f"{p['only_b']} and {p['only_a']}, McNemar p = {p['mcnemar_p']:.3g}: [bold]{verdict}[/]"
        )
