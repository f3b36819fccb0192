"""What every worker does: train a run folder to its end, from its newest checkpoint; all leave when one is asked to."""

from collections.abc import Callable
from contextlib import suppress
from typing import cast

import torch
import torch.distributed as dist

from statten.data import make_loaders
from statten.errors import Superseded
from statten.metrics.accuracy import is_distributed
from statten.models import Backbone
from statten.storage.checkpoint import load_newest, load_weights
from statten.storage.run import Run
from statten.storage.supernet import Supernet
from statten.storage.writer import RunWriter, logging_to
from statten.training.faults import classify
from statten.training.loop import fit, make_state
from statten.training.preflight import this_device
from statten.training.resuming import check_resumable
from statten.training.subnetworks import Subnetworks
from statten.training.watchdog import Watchdog


class Agreement:
    """Lets all ranks leave after the same step, whichever of them is asked to; called by every rank after every step.

    Ranks compare notes at every `EVERY`-th step. Where one has finished step m, GPU included, all have begun it, for its
    gradients are averaged. So the rank that is asked after step s names, in the store of the process group, a step of which
    no rank is done yet and that is at least s + 2, and all find it there in time.
    """

    EVERY, KEY = 8, "statten/leave"

    def __init__(self, asked: Callable[[], bool]):
        self._asked, self._step, self._said = asked, 0, False

    def __call__(self) -> bool:
        """Whether to leave after this step."""
        self._step += 1
        if not is_distributed():
            return self._asked()
        store = dist.distributed_c10d._get_default_store()
        if not self._said and self._asked():
            self._said = True
            store.compare_set(self.KEY, "", str(-(-(self._step + 2) // self.EVERY) * self.EVERY))  # the first rank's stays
        if self._step % self.EVERY:
            return False
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return store.check([self.KEY]) and self._step >= int(store.get(self.KEY))


def run_fit(
    run: Run,
    attempt: str,
    rank: int = 0,
    world_size: int = 1,
    threads: int | None = None,
    then: Callable[[dict[str, float]], object] | None = None,
    asked: Callable[[], bool] | None = None,
) -> dict[str, float] | None:
    """Train a run folder to its end, from its newest checkpoint if it has one: what every worker does.

    Returns the best epoch's metrics, or None where a worker alone fails for a reason that another try would meet again (the
    folder's result.json says). One of several raises it, for the others wait for it, and so does one that may be retried.

    Args:
        then: called on every rank after each epoch with its metrics.
        asked: whether this worker is asked to go; all ranks then write a checkpoint after the same step, and raise Preempted.
    """
    config = run.config
    agreed = Agreement(asked or (lambda: False))
    with logging_to(run.path / "train.log", rank), Watchdog(config.scale.hang_seconds, run.path / "train.log") as watchdog:

        def leave() -> bool:
            watchdog.alive()
            return asked is not None and agreed()

        if threads:
            torch.set_num_threads(threads)
        device = this_device(config.scale)
        writer = RunWriter(run, config, attempt, rank, then, leave)
        failed = True
        try:
            elastic = config.scale.min_workers < config.scale.max_workers
            check_resumable(run)
            loaders = make_loaders(config, rank, world_size, config.scale.max_workers if elastic else None)
            writer.classes = loaders.classes
            state = make_state(config, device)
            if load_newest(state, run.checkpoint_folder) is None and (run.path / "initial.safetensors").exists():
                state.model.load_state_dict(load_weights(run.path / "initial.safetensors", device))
            writer.begin(state)
            parts = (
                Subnetworks(cast(Backbone, state.model), run.space, config, run.watched) if isinstance(run, Supernet) else None
            )
            best = fit(state, loaders, config, writer, parts)
            writer.end(state)
            failed = False
            return best
        except Exception as error:
            fault = classify(error)
            if not fault.retry and not isinstance(error, Superseded):
                with suppress(OSError):  # the reason may be the disk; the command says it too
                    run.fail(fault.reason, cause=fault.kind)
                if world_size == 1:
                    return None
            raise
        finally:  # a stopped trial leaves through SystemExit
            writer.close(failed)
