"""How sure a sweep's winner is: its best trials are trained again under other seeds, and their means are compared.

Repeats lie in `<sweep>/repeats/<trial>-seed-<seed>`, run folders like any other. They are no trials of the study: the sampler
must not learn from the same configuration several times.
"""

from statten.config import with_overrides
from statten.search.sweep import Repeats, Sweep
from statten.storage.run import Run


def certainty(repeats: dict[int, Repeats], direction: str) -> tuple[int, int, float] | None:
    """Winner, runner-up, and the p of Welch's t-test that their means differ; None for fewer than two finalists."""
    from scipy.stats import ttest_ind

    ranked = sorted(repeats.values(), key=lambda r: r.mean, reverse=direction == "max")
    if len(ranked) < 2:
        return None
    first, second = ranked[:2]
    if first.stdev == second.stdev == 0:
        return first.trial, second.trial, 1.0 if first.mean == second.mean else 0.0
    return first.trial, second.trial, float(ttest_ind(first.values, second.values, equal_var=False).pvalue)


def sentence(sweep: Sweep) -> str:
    """What the repeats say about the winner, in words; empty without repeats."""
    search, repeats = sweep.config.search, sweep.repeats()
    found = certainty(repeats, search.directions[search.metric])
    if found is None:
        return ""
    first, second, p = repeats[found[0]], repeats[found[1]], found[2]
    shown = (
        f"over {search.repeats} seeds trial {first.trial} has {search.metric} {first.mean:.4g} ± {first.stdev:.2g}, "
        f"trial {second.trial} {second.mean:.4g} ± {second.stdev:.2g}"
    )
    return f"{shown}: the difference is {'more than noise' if p < 0.05 else 'not distinguishable from noise'} (p = {p:.2g})"


def planned(sweep: Sweep) -> list[Run]:
    """Run folders of the finalists' other seeds, made where they are new."""
    search = sweep.config.search
    if search.repeats == 1:
        return []
    ranked = sweep.front() if len(search.objectives) > 1 else sweep.ranked(sweep.study())
    finalists = ranked[: search.finalists]
    runs = []
    for trial in finalists:
        base = sweep.trial(trial.number).config
        for offset in range(1, search.repeats):
            seed = base.train.seed + offset
            path = sweep.path / "repeats" / f"{trial.number:04d}-seed-{seed}"
            if not path.exists():
                origin = {"sweep": sweep.name, "trial": trial.number, "point": trial.user_attrs["point"], "seed": seed}
                Run.create(path, with_overrides(base, {"train.seed": seed}), origin)
            runs.append(Run(path))
    return runs
