"""What `fit` tells, written to the run folder by rank 0: checkpoint, then metrics, then TensorBoard, and the log file."""

import errno
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statten.config import Config
from statten.errors import Superseded
from statten.files import FULL, append_line, write_json, write_text
from statten.storage.loggers import Loggers
from statten.storage.mirror import Sender, mirror_of
from statten.storage.run import Run, now

if TYPE_CHECKING:
    from statten.storage.events import EventFile

log = logging.getLogger("statten")
HOLDER = ".holder"
"""Which worker writes the run, in its folder; not sent to a store, where `.copy` says it."""


class RunWriter:
    """What `fit` reports, written to the run folder by rank 0: checkpoint, then metrics, then TensorBoard.

    Where the storage is away, every write but that of the progress waits for it, at most `scale.storage_seconds`.

    Args:
        then: called on every rank after each epoch with the metrics: Ray's own report.
        leave: called on every rank after each step; true asks for a checkpoint, and to leave.
    """

    PROGRESS_SECONDS = 0.5

    def __init__(
        self,
        run: Run,
        config: Config,
        attempt: str,
        rank: int = 0,
        then: Callable[[dict[str, float]], object] | None = None,
        leave: Callable[[], bool] = lambda: False,
    ):
        self.run, self.config, self.attempt, self.rank, self.then, self.leave = run, config, attempt, rank, then, leave
        mirror = mirror_of(run.path, config.scale.storage_seconds) if rank == 0 else None
        self.classes: Sequence[str] = ()
        """Name of each label, which every checkpoint keeps."""
        self._sender = Sender(mirror, attempt) if mirror else None
        self._events: EventFile | None = None
        self._loggers: Loggers | None = None
        self._progress_at = 0.0
        # Workers of one attempt follow each other where one is lost, and one that only seemed so may come back: from a
        # network that was cut, from a machine that stood still. Whoever begins leaves a name of his own in the folder.
        self._held_by = self._holder() if rank == 0 else None

    def begin(self, state: Any) -> None:
        """Make the folder agree with the state that training starts from."""
        if self.rank == 0:
            self._patiently(self._begin, state)
            self._loggers = Loggers(self.run, self.config, list(self.classes))
            self._loggers.begin()

    def _begin(self, state: Any) -> None:
        self._check_attempt()
        own = uuid.uuid4().hex
        write_text(self.run.path / HOLDER, own)
        self._held_by = own
        for aside in self.run.checkpoint_folder.glob(".epoch-*"):  # a killed process did not finish it
            shutil.rmtree(aside, ignore_errors=True)
        (self.run.path / "result.json").unlink(missing_ok=True)
        rows = [row for row in self.run.metrics() if row["epoch"] < state.epoch]
        if damaged := self.run.damaged_lines:
            log.warning("metrics.jsonl: %d damaged lines are left out", damaged)
            if state.best and state.best["epoch"] < state.epoch and state.best["epoch"] not in {row["epoch"] for row in rows}:
                rows = sorted([*rows, state.best], key=lambda row: row["epoch"])  # the run is judged by it
        stale = (self.run.path / "metrics.jsonl").exists()
        if state.metrics:
            # The last finished epoch comes from the checkpoint: a crash may have struck between the two.
            rows.append(state.metrics)
        if stale or rows:
            write_text(self.run.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            if state.metrics:
                self._write_events(state)

    def step(self, state: Any, steps: int) -> bool:
        """Tell where the epoch is, a few times a second."""
        if self.rank == 0 and time.monotonic() - self._progress_at >= self.PROGRESS_SECONDS:
            self._progress_at = time.monotonic()
            progress = {"epoch": state.epoch, "epochs": self.config.train.total_epochs, "step": state.step, "steps": steps}
            with suppress(OSError):  # nobody needs it to go on
                write_json(self.run.path / "progress.json", {**progress, "time": time.time()}, durable=False)
        return self.leave()

    def checkpoint(self, state: Any) -> None:
        """Write a checkpoint inside an epoch."""
        if self.rank == 0:
            self._await_store()
            self._patiently(self._save, state)
            self._send()

    def epoch(self, state: Any) -> None:
        """Keep a finished epoch."""
        if self.rank == 0:
            self._await_store()
            self._patiently(self._save, state)
            self._patiently(self._append_row, state)
            self._patiently(self._write_events, state)
            if self._loggers:
                self._loggers.epoch(state.metrics)
            self._send()
        if self.then:
            self._await_store()  # who hears of the epoch may look for it there
            self.then(dict(state.metrics))

    def end(self, state: Any) -> None:
        """Keep the result of the whole run."""
        if self.rank == 0:
            self._patiently(self._end, state)

    def _end(self, state: Any) -> None:
        self._check_attempt()
        best = {**state.best, "checkpoint": f"{self.run.checkpoint_folder.name}/epoch-{state.best['epoch']:04d}"}
        seconds = sum(row.get("seconds", 0.0) for row in self.run.metrics())
        result = {"state": "finished", "epochs": state.epoch, "seconds": seconds, "best": best, "last": state.metrics}
        write_json(self.run.path / "result.json", {**result, "ended": now()})
        (self.run.path / "progress.json").unlink(missing_ok=True)

    def close(self, failed: bool) -> None:
        """Close the event file, mark the HParams session as ended, end loggers, and see that a store has everything."""
        if self._loggers:
            self._loggers.close(failed)
        if self._events is not None:
            with suppress(OSError):  # storage that is away or full has been told of
                self._events.close(failed)
            self._events = None
        if self._sender:
            with suppress(*[RuntimeError] if failed else []):  # there is a better reason already
                self._sender.close()

    def _await_store(self) -> None:
        """Files of this run change again: what is on its way to a store must have arrived."""
        if self._sender:
            self._sender.wait()

    def _send(self) -> None:
        if self._sender:
            self._sender.start()

    def _patiently(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write to the run's folder, which must be there: an empty mount point, or a folder made anew, is not it."""
        began, pause = time.monotonic(), 0.0
        while True:
            try:
                if not (self.run.path / self.run.marker).is_file():
                    raise FileNotFoundError(errno.ENOENT, "the run's folder is not there", str(self.run.path))
                write(*arguments)
                if pause:
                    log.warning("the storage is back after %.0f s", time.monotonic() - began)
                return
            except OSError as error:
                seconds = self.config.scale.storage_seconds
                if error.errno in FULL or time.monotonic() - began >= seconds:
                    raise
                if not pause:
                    log.warning("waiting for the storage, up to %g s (scale.storage_seconds): %s", seconds, error)
            pause = min(max(0.5, 2 * pause), 15.0)
            time.sleep(pause)

    def _check_attempt(self) -> None:
        if self.run.attempt != self.attempt:
            raise Superseded(f"{self.run.path}: a newer attempt writes this run; this one stops")
        if self._holder() != self._held_by:
            raise Superseded(f"{self.run.path}: another worker took the place of this one, and writes this run; this one stops")

    def _holder(self) -> str | None:
        with suppress(OSError):
            return (self.run.path / HOLDER).read_text(encoding="utf-8", errors="replace")
        return None

    def _append_row(self, state: Any) -> None:
        self._check_attempt()
        append_line(self.run.path / "metrics.jsonl", json.dumps(state.metrics))

    def _save(self, state: Any) -> None:
        from statten.storage import checkpoint  # torch, which a folder that is only read does not need

        self._check_attempt()
        checkpoint.save(state, self.run.checkpoint_folder, self.config, self.classes)
        checkpoint.prune(self.run.checkpoint_folder, self.config.train.keep_checkpoints, state.best.get("epoch"))

    def _write_events(self, state: Any) -> None:
        rows = [state.metrics]
        if self._events is None:  # made with the first row, so that no event file is empty
            from statten.storage.events import EventFile  # TensorBoard, which a folder that is only read does not need

            self._events, rows = EventFile(self.run.path, self.config, self.run.origin.get("point")), self.run.metrics()
        try:
            self._events.write(rows)
        except OSError:
            self._events = None  # the writer's thread ended with it
            raise


class _LogFile(logging.FileHandler):
    """A log file whose storage may be away when a line is written: that line is then on the screen alone."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)


@contextmanager
def logging_to(path: Path, rank: int) -> Iterator[None]:
    """Also write rank 0's log lines of this package to a file of the run folder."""
    logger = logging.getLogger("statten")
    if rank:
        yield
        return
    handler = _LogFile(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
