"""What is tried again, and what stops at once with a reason."""

import errno
import subprocess
import sys

import pytest
import ray
import ray.exceptions
import torch
from ray.train import WorkerGroupError  # type: ignore[attr-defined]
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import ControllerError

from statten.data import CorruptSample
from statten.errors import Failed, UserError
from statten.training.faults import Diverged, Preempted, classify


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


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (Preempted("asked to go after step 3"), "lost", "asked to go after step 3"),
        (ray.exceptions.RayActorError(error_msg="its node has died"), "lost", "the node of a worker is gone"),
        (RuntimeError("NCCL error: x\nmore"), "lost", "a worker lost its connection or its device: NCCL error: x"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "error",
         "the disk of the run is full (/x): No space left on device; free some space"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "error", "the disk of the run is full: Quota exceeded; free some space"),
        (OSError(errno.EIO, "Input/output error"), "error", "OSError: [Errno 5] Input/output error"),
        (KeyError("a"), "error", "KeyError: 'a'"),
        (AssertionError(), "error", "AssertionError"),
        (AssertionError(" "), "error", "AssertionError"),
    ],
)  # fmt: skip
def test_a_reason_is_a_sentence_of_its_own(error, kind, reason):
    fault = classify(error)
    assert (fault.kind, fault.reason) == (kind, reason)


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
