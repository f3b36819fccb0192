"""Why training stopped, and whether the same command may go on by itself.

    lost       a worker process or its node is gone            tried again from the newest checkpoint
    memory     out of memory, on the GPU or on the machine     the same batch would not fit again
    diverged   the loss is not finite                          the same steps would diverge again
    input      the user's config or data is wrong              somebody has to correct it
    error      anything else, such as a full disk or a bug     the same code would fail again

Randomness is a function of (seed, epoch, step, rank), so what failed for a reason inside the run fails again.
"""

from dataclasses import dataclass
from typing import Literal

from statten.data import CorruptSample
from statten.errors import Failed, UserError, first_line
from statten.files import FULL

Kind = Literal["lost", "memory", "diverged", "input", "error"]

LESS_MEMORY = (
    "use a smaller train.batch_size, or scale.activation_checkpointing=true or scale.packed_spikes=true, "
    "and see the estimate with --dry-run"
)
# Where Ray's errors keep the one that they wrap.
_WRAPPED = ("controller_failure", "health_check_failure", "cause", "_base_exc")
_ORDER: tuple[Kind, ...] = ("memory", "input", "diverged", "error", "lost")
# Of torch on a GPU, of torch on a CPU, of Ray when it ends a worker before the machine runs full.
_MEMORY = ("out of memory", "can't allocate memory", "running low on memory")
# A rank that lost another one fails in the next collective, or finds the group's store gone, with one of these.
_COLLATERAL = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe", "socket timeout")
# A GPU that fell off or an uncorrectable error of its memory: another try may meet a sound one.
_HARDWARE = ("uncorrectable ecc", "unspecified launch failure", "device lost", "gpu is lost", "hardware error")


class Diverged(RuntimeError):
    """Loss became infinite or not a number; starting again from the same state would not help."""


class Preempted(RuntimeError):
    """The worker was asked to go, and has written a checkpoint."""


@dataclass(frozen=True)
class Fault:
    """Why training stopped."""

    kind: Kind
    reason: str
    """One line for result.json and for the person at the screen, with what to do about it."""

    @property
    def retry(self) -> bool:
        """Whether going on from the newest checkpoint may help."""
        return self.kind == "lost"


def classify(error: BaseException) -> Fault:
    """The fault behind an error as Ray Train, Ray Tune or `run_fit` raise it.

    Where several ranks failed, and one of them for a reason of its own, that one counts: the others fail for want of it.
    """
    ranks = list(getattr(error, "worker_failures", {}).values())
    wrapped = ranks or [getattr(error, name, None) for name in _WRAPPED]
    faults = [classify(inner) for inner in wrapped if isinstance(inner, BaseException)]
    if faults:
        return min(faults, key=lambda fault: _ORDER.index(fault.kind))
    if fault := _known(error):
        return fault
    return classify(error.__cause__) if error.__cause__ is not None else Fault("error", _named(error))


def _known(error: BaseException) -> Fault | None:
    text, names = str(error).lower(), {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, Diverged):
        return Fault("diverged", first_line(error))
    if isinstance(error, UserError | CorruptSample):
        return Fault("input", "; ".join(str(error).splitlines()))
    if isinstance(error, Failed):
        return Fault("error", first_line(error))  # judged before
    # By name: torch and Ray both have an OutOfMemoryError, and neither need be imported to read a message.
    if names & {"OutOfMemoryError", "MemoryError"} or any(phrase in text for phrase in _MEMORY):
        return Fault("memory", f"out of memory: {first_line(error)}; {LESS_MEMORY}")
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" ({error.filename})" if error.filename else ""
        return Fault("error", f"the disk of the run is full{where}: {error.strerror}; free some space")
    if isinstance(error, Preempted):
        return Fault("lost", first_line(error))
    if names & {"NodeDiedError", "LocalRayletDiedError", "OwnerDiedError"}:
        return Fault("lost", "the node of a worker is gone")
    if names & {"RayActorError", "WorkerCrashedError", "WorkerHealthCheckTimeoutError", "ActorPlacementGroupRemoved"}:
        return Fault("lost", "the node of a worker is gone" if "its node" in text else "a worker process is gone")
    if names & {"DistBackendError", "DistNetworkError", "DistStoreError"} or (
        isinstance(error, RuntimeError | OSError) and any(phrase in text for phrase in (*_COLLATERAL, *_HARDWARE))
    ):
        return Fault("lost", f"a worker lost its connection or its device: {first_line(error)}")
    return None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
