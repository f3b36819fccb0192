"""When a run stops in place of a new worker: the budget is spent, the kernel ended it, a newer attempt has the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray.exceptions
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from statten.cluster.recovery import Recovery
from statten.cluster.session import ray_cluster
from statten.config import load_config
from statten.errors import Failed
from statten.machine import killed_for_memory
from statten.storage.run import Run
from statten.training.faults import Diverged, Preempted

LOST = WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.ActorDiedError())


def test_the_budget_of_restarts_is_said_when_it_is_spent(tmp_path):
    run = Run.create(tmp_path / "run", load_config("digits"))
    with run.writing() as attempt, pytest.raises(Failed, match=r"1 times in this run; scale\.max_failures=0 allows no further"):
        Recovery(run.path, attempt, 0, {}).after_exception(None, {0: LOST})
    assert run.result["cause"] == "lost" and "a worker process is gone" in run.result["reason"]


def test_workers_that_were_asked_to_go_spend_nothing_of_the_budget(tmp_path):
    """Spot machines are taken away again and again; only what was lost counts."""
    run = Run.create(tmp_path / "run", load_config("digits"))
    asked = Preempted("asked to go after step 3 of epoch 1, and a checkpoint is written")
    with run.writing() as attempt, ray_cluster(None):
        recovery = Recovery(run.path, attempt, 1, {})
        for number in range(1, 4):
            try:
                recovery.after_exception(None, {0: asked, 1: asked})
            except Failed as error:
                pytest.fail(f"workers that were asked to go were counted as failures the time {number}: {error}")
        recovery.after_exception(None, {0: LOST})
        with pytest.raises(Failed, match=r"2 times in this run; scale\.max_failures=1 allows no further"):
            recovery.after_exception(None, {0: LOST})
    notes = (run.path / "train.log").read_text().splitlines()
    assert [("restart 1 of 1" in note, "asked to go" in note) for note in notes] == [*3 * [(False, True)], (True, False)]


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
