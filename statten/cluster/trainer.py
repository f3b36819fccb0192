"""Ray Train around `fit`: workers, their restarts, and the run folder that they share."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from statten.cluster.nodes import Node, alive_nodes, capacity, check_shared, place, placed
from statten.cluster.session import ray_cluster
from statten.config import Config, ScaleConfig
from statten.data import check_split, resolved, split_document
from statten.display import console
from statten.display.run import following
from statten.errors import Failed, UserError, in_shell
from statten.files import write_json
from statten.machine import environment
from statten.storage.loggers import check_loggers
from statten.storage.run import Run
from statten.storage.supernet import KINDS
from statten.training.faults import classify
from statten.training.preflight import Preflight, preflight
from statten.training.resuming import check_resumable

RESIZE_SECONDS = 30.0
"""How often a run with `scale.workers: [min, max]` looks whether the cluster has room for more workers."""

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
        Failed: workers were lost more than `scale.max_failures` times, or training failed for another reason.
    """
    if path.exists():
        Run.create(path, config)  # raises: say so before any machine is asked for
    config = resolved(config)
    check_loggers(config, (origin or {}).get("sweep"))
    with ray_cluster(config.scale.address):
        machines = check_nodes(config, path)
        plan = preflight(config, capacity(machines))
        show_places(machines, plan, config.scale)
        extra = {"environment.json": environment(), "splits.json": split_document(config)}
        run = Run.create(path, config, origin, extra, weights)
        return _execute(run, plan)


def resume(run: Run) -> Run:
    """Train a run that was stopped from its newest checkpoint to its end; raises like `train`."""
    if run.state == "finished":
        raise UserError(
            f"{run.path}: is finished, there is nothing to resume; train longer with: statten promote {in_shell(run.name)}"
        )
    config = run.config
    if changed := check_resumable(run):
        console.print(f"changed since its newest checkpoint: {', '.join(changed)}", markup=False)
    check_loggers(config, run.origin.get("sweep"))
    with run.resumable(), ray_cluster(config.scale.address):
        machines = check_nodes(config, run.path)
        plan = preflight(config, capacity(machines))
        show_places(machines, plan, config.scale)
        check_split(config, run.path / "splits.json")
        write_json(run.path / "environment.json", environment())
        return _execute(run, plan)


def check_nodes(config: Config, path: Path) -> list[Node]:
    """The machines of the cluster; raises UserError where one of them does not see what its workers read or write.

    Plans are made for these, and for no others: a machine may come or go at any time.

    Args:
        path: folder of the run or sweep.
    """
    check_shared(path.parent)
    if config.data.root is not None:
        check_shared(Path(config.data.root), "data.root", mirrored=False)
    return alive_nodes()


def show_places(machines: list[Node], plan: Preflight, scale: ScaleConfig, trials: int = 1) -> None:
    """Print what will run where, on several machines; raises UserError where something finds no room.

    Args:
        trials: runs side by side.
    """
    if len(machines) > 1:
        console.print("\n".join(placed(place(machines, trials, plan, scale))), style="dim")


def _execute(run: Run, plan: Preflight) -> Run:
    with run.writing() as attempt, following(run):
        fit_on_workers(run, attempt, plan)
    return run


def fit_on_workers(run: Run, attempt: str, plan: Preflight, then: Any = None) -> None:
    """Run a TorchTrainer for a run folder; lost workers are replaced and go on from the newest checkpoint.

    Args:
        then: a Ray Train callback that hears every report, such as Tune's.

    Raises:
        Failed: the run did not reach its end; result.json has the reason too.
    """
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    from statten.cluster.recovery import Notice, Recovery, Resizing

    (run.path / "result.json").unlink(missing_ok=True)  # of an earlier attempt
    run.publish(attempt)
    scratch, failures = run.path.resolve() / "ray", run.config.scale.max_failures
    settings = {"run": run.address, "kind": run.noun, "attempt": attempt, "report": then is not None}
    elastic = [Resizing(run.path.resolve())] if plan.min_workers < plan.world_size else []
    for restart in range(failures + 1):
        recovery = Recovery(run.path.resolve(), attempt, failures, plan.resources(plan.min_workers))
        callbacks = [recovery, Notice(), *elastic, *([then] if then else [])]
        name = f"{attempt}-{restart}"
        trainer = _torch_trainer(_worker, settings, plan, name, scratch, -1, callbacks, run.config.scale.placement)
        try:
            trainer.fit()
            run.refresh()
            break
        except (TrainingFailedError, RayError) as error:
            run.refresh()
            fault = classify(error)
            if fault.retry and restart < failures:  # lost while the workers were starting, where Ray asks nobody
                run.note(f"{fault.reason}; starting again from the newest checkpoint")
                continue
            reason = run.reason or fault.reason
            details = f"details are in {scratch}; go on with: statten resume {in_shell(run.name)}"
            raise Failed(f"{run.path}: {reason}; {details}") from error
    shutil.rmtree(scratch, ignore_errors=True)
    if run.state != "finished":
        raise Failed(f"{run.path}: {run.reason or 'ended without a result'}")


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
        check_shared(scratch, "the folder of the evaluation", mirrored=False)
        ranked = functools.partial(_ranked, worker)
        failures, folder = config.scale.max_failures, scratch.resolve()
        trainer = _torch_trainer(ranked, settings, plan, "workers", folder, failures, [], communicating=False)
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise Failed(
                f"{classify(error).reason}; details are in {scratch}; the same command goes on where it was"
            ) from error
    shutil.rmtree(scratch, ignore_errors=True)


def _ranked(worker: RankFunction, settings: dict[str, Any]) -> None:
    import ray.train

    context = ray.train.get_context()
    worker(settings, context.get_world_rank(), context.get_world_size())


def _torch_trainer(
    worker: Callable[[dict[str, Any]], None], settings: dict[str, Any], plan: Preflight, name: str, scratch: Path,
    max_failures: int, callbacks: list[Any], placement: str = "pack", communicating: bool = True,
) -> Any:  # fmt: skip
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

    class Trainer(TorchTrainer):
        """Leaves signals alone: with Ray's own handler Ctrl-C ends the process with 0 and without a word.

        And it has no process for Ray Data, of whose datasets there are none.
        """

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

        def _create_default_callbacks(self) -> list[Any]:
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, DatasetsCallback)]

    gpu = plan.device == "cuda"
    return Trainer(
        worker,
        train_loop_config={**settings, "threads": plan.cpus_per_worker},
        torch_config=TorchConfig(backend="nccl" if gpu and communicating else "gloo"),  # NCCL refuses two ranks on one GPU
        scaling_config=ScalingConfig(
            num_workers=plan.world_size if plan.min_workers == plan.world_size else (plan.min_workers, plan.world_size),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=gpu,
            placement_strategy=placement.upper(),
            resources_per_worker=plan.resources(),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=callbacks,
        ),
    )


def _worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train

    from statten.cluster.recovery import noticing
    from statten.training.worker import run_fit

    context = ray.train.get_context()
    with noticing() as asked:
        run_fit(
            KINDS[settings["kind"]].at(settings["run"], settings["attempt"], writes=context.get_world_rank() == 0),
            settings["attempt"],
            context.get_world_rank(),
            context.get_world_size(),
            settings["threads"],
            ray.train.report if settings["report"] else None,  # only Tune listens, and a report waits for Ray's next poll
            asked,
        )
