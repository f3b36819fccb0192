"""What is tried again, and what stops at once with a reason."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import ray.exceptions
import torch
from ray.train import WorkerGroupError  # type: ignore[attr-defined]
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import ControllerError

from statten.cluster.recovery import Recovery
from statten.config import load_config
from statten.data import CorruptSample
from statten.errors import Failed, UserError
from statten.machine import killed_for_memory
from statten.storage.run import Run
from statten.training.faults import Diverged, classify


def raised(function) -> BaseException:
    with pytest.raises(BaseException) as caught:
        function()
    return caught.value


def ranks(*errors: BaseException) -> WorkerGroupError:
    return WorkerGroupError("two ranks", dict(enumerate(errors)))


DEAD = ray.exceptions.ActorDiedError()
LOST = WorkerHealthCheckFailedError("A worker health check failed.", DEAD)
COLLATERAL = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
KILLED_FOR_MEMORY = ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (LOST, "lost", "a worker process is gone"),
        (ray.exceptions.WorkerCrashedError(), "lost", "a worker process is gone"),
        (WorkerHealthCheckTimeoutError("hanging"), "lost", "a worker process is gone"),
        (ray.exceptions.NodeDiedError("node"), "lost", "the node of a worker is gone"),
        (COLLATERAL, "lost", "lost its connection"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory", "smaller train.batch_size"),
        (MemoryError(), "memory", "scale.activation_checkpointing=true"),
        (KILLED_FOR_MEMORY, "memory", "running low on memory"),
        (Diverged("the loss is not finite"), "diverged", "the loss is not finite"),
        (UserError(["train.lr: one", "train.epochs: two"]), "input", "train.lr: one; train.epochs: two"),
        (CorruptSample("a.jpg: cut off"), "input", "a.jpg: cut off"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "error", "No space left on device"),
        (KeyError("a"), "error", "KeyError: 'a'"),
        (AssertionError(), "error", "AssertionError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_cause_alone_and_as_the_one_of_two_ranks(error, kind, said):
    assert said in classify(error).reason
    for wrapped in (error, ranks(LOST, error), ranks(error, COLLATERAL), ControllerError(ranks(COLLATERAL, error))):
        fault = classify(wrapped)
        assert fault.kind == kind and fault.retry == (kind == "lost") and "\n" not in fault.reason


def test_torch_without_memory_on_the_cpu():
    assert classify(raised(lambda: torch.empty(1 << 60, dtype=torch.uint8))).kind == "memory"


def test_a_cause_is_found_below_what_was_raised_from_it():
    def outer():
        raise RuntimeError("the epoch could not be finished") from Diverged("the loss is not finite")

    assert classify(raised(outer)).kind == "diverged"
    assert classify(CorruptSample("a.jpg: gone")).reason == "a.jpg: gone"


def test_what_was_judged_is_not_judged_again():
    judged = classify(ControllerError(Failed("a worker lost its connection: gloo, 4 times; no further restart")))
    assert (judged.kind, judged.retry) == ("error", False) and judged.reason.startswith("a worker lost its connection")


def test_a_message_can_be_read_without_ray():
    code = "import sys; from statten.training.faults import classify; classify(KeyError()); print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_the_budget_of_restarts_is_said_when_it_is_spent(tmp_path):
    run = Run.create(tmp_path / "run", load_config("digits"))
    with run.writing() as attempt, pytest.raises(Failed, match=r"1 times in this run; scale\.max_failures=0 allows no further"):
        Recovery(run.path, attempt, 0, {}).after_exception(None, {0: LOST})
    assert run.result["cause"] == "lost" and "a worker process is gone" in run.result["reason"]


def test_an_older_attempt_leaves_the_newer_ones_result_alone(tmp_path):
    run = Run.create(tmp_path / "run", load_config("digits"))
    with run.writing(), pytest.raises(Failed, match="the loss"):
        Recovery(run.path, "older", 3, {}).after_exception(None, {0: Diverged("the loss is not finite")})
    assert run.result is None


IN_A_GROUP = """
import os, signal, subprocess, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
from statten.errors import Failed
from statten.machine import killed_for_memory
from statten.cluster.recovery import Recovery
from statten.storage.run import Run
from ray.exceptions import RayActorError
run, counted = Run(Path(sys.argv[2])), killed_for_memory()
with run.writing() as attempt:
    recovery = Recovery(run.path, attempt, 3, {})
    ended = subprocess.run([sys.executable, "-c", "bytearray(3_000_000_000)"])
    assert ended.returncode == -signal.SIGKILL and killed_for_memory() == counted + 1
    try:
        recovery.after_exception(None, {0: RayActorError()})
    except Failed as error:
        print(error)
"""


def test_a_worker_that_the_kernel_ended_for_want_of_memory_is_not_replaced(tmp_path):
    """The real thing: a process in a memory cgroup that is too small for it."""
    new, old = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
    cgroup, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (new, "memory.max")
    cgroup = cgroup / f"statten-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    run = Run.create(tmp_path / "run", load_config("digits"))
    try:
        if not (cgroup / limit).exists():
            pytest.skip("memory cgroups are not delegated here")
        (cgroup / limit).write_text("2000000000")
        counted = killed_for_memory()
        done = subprocess.run([sys.executable, "-c", IN_A_GROUP, str(cgroup), str(run.path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "out of memory: the system ended a process for want of it; use a smaller" in done.stdout
        assert run.result["cause"] == "memory"
        if cgroup.parent == old and "memory:/\n" not in Path("/proc/self/cgroup").read_text():
            assert killed_for_memory() == counted, "another group's want of memory is not ours"
    finally:
        cgroup.rmdir()
