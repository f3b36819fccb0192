"""Ray Train around `fit`: workers, their restarts, and the run folder that they share."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from statten.cluster import ray_cluster
from statten.config import Config, Failed, UserError
from statten.data import absolute_root, check_split, split_document
from statten.display import following
from statten.files import write_json
from statten.runs import Run, environment
from statten.train import Preflight, preflight, run_fit

RankFunction = Callable[[dict[str, Any], int, int], None]


def train(config: Config, path: Path, weights: Path | None = None, origin: dict[str, Any] | None = None) -> Run:
    """Create the run folder at `path` and train it to its end on `config.scale.workers` Ray workers.

    Args:
        config: the run.
        path: folder of the run; must not exist, on storage that all workers see.
        weights: safetensors file with initial weights; None starts from the seed.
        origin: where those weights come from, for the record.

    Raises:
        UserError: something in the config, the name or the machine; nothing is written then.
        Failed: training diverged, met a corrupt file, or failed more than `scale.max_failures` times.
    """
    if path.exists():
        Run.create(path, config)  # raises: say so before any machine is asked for
    config = absolute_root(config)
    with ray_cluster(config.scale.address) as capacity:
        plan = preflight(config, capacity)
        extra = {"environment.json": environment(), "splits.json": split_document(config)}
        run = Run.create(path, config, origin, extra, weights)
        return _execute(run, plan)


def resume(run: Run) -> Run:
    """Train a run that was stopped from its newest checkpoint to its end; raises like `train`."""
    if run.state == "finished":
        raise UserError(f"{run.path}: is finished, there is nothing to resume; train longer with: statten promote {run.name}")
    config = run.config
    with ray_cluster(config.scale.address) as capacity:
        plan = preflight(config, capacity)
        check_split(config, run.path / "splits.json")
        write_json(run.path / "environment.json", environment())
        return _execute(run, plan)


def _execute(run: Run, plan: Preflight) -> Run:
    with run.writing() as attempt, following(run):
        fit_on_workers(run, attempt, plan)
    return run


def fit_on_workers(run: Run, attempt: str, plan: Preflight, then: Any = None) -> None:
    """Run a TorchTrainer for a run folder; lost workers are replaced and go on from the newest checkpoint.

    Args:
        then: a Ray Train callback that hears every report, such as Tune's.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    (run.path / "result.json").unlink(missing_ok=True)  # of an earlier attempt
    run.publish(attempt)
    scratch = run.path.resolve() / "ray"
    settings = {"run": run.address, "attempt": attempt}
    trainer = _torch_trainer(_worker, settings, plan, attempt, scratch, run.config.scale.max_failures, then)
    try:
        trainer.fit()
        run.refresh()
    except TrainingFailedError as error:
        reason = _cause(error)
        run.fail(reason)
        raise Failed(f"{run.path}: {reason}; details are in {scratch}; go on with: statten resume {run.name}") from error
    shutil.rmtree(scratch, ignore_errors=True)
    if run.state != "finished":
        raise Failed(f"{run.path}: {(run.result or {}).get('reason', 'ended without a result')}")


def on_workers(worker: RankFunction, settings: dict[str, Any], plan: Preflight, config: Config, scratch: Path) -> None:
    """Run a function of another room on as many Ray Train workers as the plan has; what it finds it writes to files.

    Args:
        worker: a module's function (settings, rank, world_size).
        settings: plain values; `threads` is added.
        scratch: Ray's own folder, removed when all is well.

    Raises:
        Failed: a worker failed more than `scale.max_failures` times.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    with ray_cluster(config.scale.address):
        ranked = functools.partial(_ranked, worker)
        trainer = _torch_trainer(ranked, settings, plan, "workers", scratch.resolve(), config.scale.max_failures, None)
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise Failed(f"{_cause(error)}; details are in {scratch}; the same command goes on where it was") from error
    shutil.rmtree(scratch, ignore_errors=True)


def _ranked(worker: RankFunction, settings: dict[str, Any]) -> None:
    import ray.train

    context = ray.train.get_context()
    worker(settings, context.get_world_rank(), context.get_world_size())


def _torch_trainer(
    worker: Callable[[dict[str, Any]], None], settings: dict[str, Any], plan: Preflight, name: str, scratch: Path,
    max_failures: int, then: Any,
) -> Any:  # fmt: skip
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = plan.device == "cuda"
    return TorchTrainer(
        worker,
        train_loop_config={**settings, "threads": plan.cpus_per_worker},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.world_size,
            use_gpu=gpu,
            placement_strategy=placement.upper(),
            resources_per_worker={"CPU": plan.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[then] if then else None,
        ),
    )


def _worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train

    context = ray.train.get_context()
    rank = context.get_world_rank()
    run_fit(
        Run.at(settings["run"], settings["attempt"], writes=rank == 0),
        settings["attempt"],
        rank,
        context.get_world_size(),
        settings["threads"],
        ray.train.report,
    )


def _cause(error: BaseException) -> str:
    """The innermost message of a failure, in one line."""
    failures = getattr(error, "worker_failures", None)
    inner: BaseException = next(iter(failures.values())) if failures else error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    lines = [line for line in str(inner).strip().splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[-1].strip()}" if lines else type(inner).__name__
