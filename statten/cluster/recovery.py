"""What Ray Train does when a worker fails: go on from the newest checkpoint, or stop at once with the reason.

By itself Ray starts the workers again after any error, and knows nothing of a person who reads why.
"""

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from statten.errors import Failed
from statten.machine import killed_for_memory
from statten.storage.run import Run
from statten.training.faults import LESS_MEMORY, Fault, Preempted, classify


class Recovery(UserCallback):
    """Judges every failure, in Ray's controller process; raising is what stops Ray.

    Args:
        run: path of the run folder.
        attempt: the attempt that these workers belong to; a newer one's files are left alone.
        max_failures: how often lost workers are replaced; those that were asked to go do not count.
        needs: resources of the smallest worker group that can go on.
    """

    def __init__(self, run: Path, attempt: str, max_failures: int, needs: dict[str, float]):
        self.run, self.attempt, self.max_failures, self.needs = run, attempt, max_failures, needs
        self.failures, self.killed = 0, killed_for_memory()  # Ray puts its controller on the driver's machine

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray's hook: one or more ranks have failed."""
        run, fault = Run(self.run), classify(WorkerGroupError("", worker_exceptions))
        asked = any(isinstance(error, Preempted) for error in worker_exceptions.values())
        if fault.kind == "lost" and killed_for_memory() > self.killed:
            fault = Fault("memory", f"out of memory: the system ended a process for want of it; {LESS_MEMORY}")
        self.failures += not asked
        reason = fault.reason
        if fault.retry and self.failures <= self.max_failures:
            count = "" if asked else f" (restart {self.failures} of {self.max_failures})"
            run.note(f"{reason}; going on from the newest checkpoint{count}{self._short_of()}")
            return
        if fault.retry:
            reason += f", {self.failures} times in this run; scale.max_failures={self.max_failures} allows no further restart"
        if run.attempt == self.attempt:
            with contextlib.suppress(OSError):  # the reason may be the disk; the command says it too
                run.fail(reason, cause=fault.kind)
        raise Failed(reason)

    def _short_of(self) -> str:
        """The end of a sentence where the cluster is too small now, and Ray waits for it to grow."""
        have = ray.cluster_resources()
        missing = [f"{need:g} {what}" for what, need in self.needs.items() if have.get(what, 0) < need]
        return f" as soon as the cluster has {' and '.join(missing)} again" if missing else ""


class Resizing(WorkerGroupCallback, ControllerCallback):
    """Lets the workers write a checkpoint before Ray replaces them by more, or fewer: by itself it ends them in mid-step."""

    SECONDS = 120

    def __init__(self, run: Path):
        self.run, self.group = run, None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Ray's hook: these workers train now."""
        self.group = worker_group
        Run(self.run).note(f"training on {len(worker_group.get_workers())} workers")

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Ray's hook: and no longer."""
        self.group = None

    def before_controller_execute_resize_decision(self, decision: Any) -> None:
        """Ray's hook: the cluster has room for another number of workers, and these are about to be ended."""
        if self.group is None:
            return  # the first workers, or those after a failure
        actors = [worker.actor for worker in self.group.get_workers()]
        deadline = time.monotonic() + self.SECONDS
        with contextlib.suppress(ray.exceptions.RayError):  # lost in this moment: the newest checkpoint it is
            ray.get([actor.mark_preempt.remote(PreemptionInfo(None, {})) for actor in actors], timeout=self.SECONDS)
            while time.monotonic() < deadline:
                ended = [
                    status for status in ray.get([a.poll_status.remote() for a in actors], timeout=30) if not status.running
                ]
                if len(ended) == len(actors):
                    for error in {classify(status.error).reason for status in ended if status.error}:
                        Run(self.run).note(error)
                    return
                time.sleep(0.1)


class Notice(WorkerCallback):
    """Notices, in a worker, that it is asked to go: by SIGTERM, or because its node is drained."""

    def after_init_train_context(self) -> None:
        """Ray's hook, in the main thread of the worker process: the only one that may say what a signal does."""
        before = signal.getsignal(signal.SIGTERM)

        def on_term(number: int, frame: Any) -> None:
            if _listening.is_set() and not _terminated.is_set():
                _terminated.set()
            elif callable(before):
                before(number, frame)

        _terminated.clear()
        signal.signal(signal.SIGTERM, on_term)


_listening, _terminated = threading.Event(), threading.Event()


@contextlib.contextmanager
def noticing():
    """Yield a function that tells whether this worker is asked to go; elsewhere SIGTERM ends it at once."""
    context = get_train_context()
    _listening.set()
    try:
        yield lambda: _terminated.is_set() or context.preemption_context.preemption_info is not None
    finally:
        _listening.clear()
