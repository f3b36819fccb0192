"""What a run and a sweep survive: kills at random, and the faults that a cluster has in store.

python benchmarks/faults.py [--kills 50] [--seed 0] [--only NAME ...] [--output benchmarks/faults-cpu.json]

A Ray cluster of a head and two nodes, each a `ray start` of its own on a loopback address, runs `statten train` and
`statten tune`. Half of the kills (-9) strike training, half a sweep: a worker or trial actor, the command itself (the driver)
or all processes of a node, drawn by `--seed`, some time after the last one when the run has written a checkpoint since. A
worker or node is replaced without anybody's doing; after a driver's end one command, `statten resume NAME`, goes on. Then
come single faults. In the end every run is compared with one that nothing happened to:

    lost      finished epochs that were trained again, and trials that ended without a result or were touched after their end
    twice     epochs or trials with two results, in metrics.jsonl, TensorBoard's events or the Optuna study
    equal     weights and every epoch's metrics in the same bits as in the uninterrupted run (on a CPU)
    resume    seconds from the fault to the next step that is new, the median and the longest

Ends with exit code 1 if anything was lost, twice or unequal.
"""

import argparse
import contextlib
import logging
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from statten.cluster.session import free_port
from statten.display import console, table, use_stderr
from statten.files import write_json
from statten.machine import environment
from statten.records.reading import read
from statten.records.runs import Progress
from statten.search import Sweep
from statten.storage.events import tag
from statten.storage.run import Run, checkpoints

MARK = "STATTEN_FAULTS"
WORKER = re.compile(rb"ray::(RayTrainWorker|_RayTrainWorker)")
ACTOR = re.compile(rb"ray::(ImplicitFunc|trial|_Trial|\w*[Tt]rain\w*\.train)")
SMALL = "--set model.depth=1 --set model.embed_dim=32 --set train.warmup_epochs=0 --set scale.max_failures=1000"
SPACE = "model.embed_dim: {int: [32, 64], step: 32}\ntrain.lr: {float: [1.0e-3, 1.0e-2], log: true}\n"


def marked(mark: str, command: re.Pattern[bytes] | None = None) -> list[int]:
    """Processes with a mark in their environment, which those that they start inherit."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"{MARK}_{mark}=1".encode() in (path / "environ").read_bytes()
            if ours and (command is None or command.match((path / "cmdline").read_bytes())):
                found.append(int(path.name))
    return sorted(found)


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to processes that may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.05)
    return value


class Cluster:
    """A head without cores for workers, and nodes of one core each, that can be killed and started again."""

    def __init__(self, nodes: int = 2):
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # short, for the paths of sockets
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_USAGE_STATS_ENABLED": "0"}
        self.marks: list[str] = [""] * (nodes + 1)
        self.port = free_port()
        for node in range(nodes + 1):
            self.start(node)

    @property
    def address(self) -> str:
        """Where drivers join."""
        return f"127.0.0.1:{self.port}"

    def start(self, node: int) -> None:
        """Start a node, the head being number 0."""
        self.marks[node] = uuid.uuid4().hex
        role = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        arguments = role if node == 0 else [f"--address={self.address}"]
        command = [Path(sys.executable).with_name("ray"), "start", *arguments, f"--node-ip-address=127.0.0.{node + 1}"]
        command += [f"--num-cpus={min(node, 1)}", "--object-store-memory=100000000", "--disable-usage-stats"]
        environment = {**os.environ, **self.environment, f"{MARK}_{self.marks[node]}": "1"}
        subprocess.run([*map(str, command)], env=environment, check=True, capture_output=True, timeout=120)

    def kill(self, node: int) -> None:
        """End all processes of a node at once."""
        kill(marked(self.marks[node]))

    def restart(self) -> None:
        """Kill everything, and start it again."""
        for node in range(len(self.marks)):
            self.kill(node)
        for node in range(len(self.marks)):
            self.start(node)

    def close(self) -> None:
        """End all nodes and remove their files."""
        for node in range(len(self.marks)):
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)


class Command:
    """A `statten` command on the cluster, its output in a file."""

    def __init__(self, cluster: Cluster, storage: Path, *arguments: str):
        self.mark, self.output = uuid.uuid4().hex, storage / f"{uuid.uuid4().hex}.log"
        environment = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address, f"{MARK}_{self.mark}": "1"}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "statten.cli", *arguments, "--storage", str(storage)],
                stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def finish(self, code: int = 0, seconds: float = 900) -> str:
        """Wait for its end and return what it printed."""
        if self.process.wait(seconds) != code:
            raise RuntimeError(f"ended with {self.process.returncode} instead of {code}:\n{self.text}")
        return self.text


class Faults:
    """The cluster, the folder for runs, and the run to which nothing happened."""

    def __init__(self, epochs: int, trials: int, seed: int):
        self.epochs, self.trials, self.random = epochs, trials, random.Random(seed)
        self.cluster, self.storage = Cluster(), Path(tempfile.mkdtemp(prefix="faults-"))
        self.options = f"{SMALL} --set train.epochs={epochs} --set train.checkpoint_every_steps=4".split()
        self.rows: list[dict[str, Any]] = []

    def close(self) -> None:
        """Leave nothing behind."""
        self.cluster.close()
        shutil.rmtree(self.storage, ignore_errors=True)

    # --- commands

    def train(self, name: str, *options: str, storage: Path | None = None) -> tuple[Command, Run]:
        """Start a run on two workers."""
        arguments = ["train", "digits", *self.options, "--set", "scale.workers=2", "--set", "scale.cpus_per_worker=1", *options]
        folder = storage or self.storage
        return Command(self.cluster, folder, *arguments, "--name", name), Run(folder / name)

    def resume(self, name: str, storage: Path | None = None) -> Command:
        """The one command after a driver's end."""
        return Command(self.cluster, storage or self.storage, "resume", name)

    def workers(self, pattern: re.Pattern[bytes] = WORKER) -> list[int]:
        """Processes on the nodes that train."""
        return [pid for mark in self.cluster.marks[1:] for pid in marked(mark, pattern)]

    # --- comparing

    def judge(self, what: str, run: Run, seen: list[dict], seconds: list[float], kills: int = 1, **more: Any) -> None:
        """Add a row for a finished run; `seen` are the rows of the epochs that were finished when a fault struck."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        rows, reference = run.metrics(), Run(self.storage / "straight")
        numbers = [row["epoch"] for row in rows]
        events = [event.step for event in EventAccumulator(str(run.path)).Reload().Scalars(tag("val/top1"))]
        row = {
            "fault": what, "kills": kills, "finished": run.state == "finished" and numbers == [*range(1, self.epochs + 1)],
            "lost": sum(row not in rows for row in seen), "twice": _repeated(numbers) + _repeated(events),
            "equal": _bits(run) == _bits(reference), "resume_s": [round(s, 1) for s in seconds], **more,
        }  # fmt: skip
        self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row and print it."""
        self.rows.append(row)
        console.print(" ".join(f"{key}={value}" for key, value in row.items()))

    # --- random kills

    def strike(self, fired: "Fired") -> None:
        """Wait for a checkpoint since the last kill, kill something, and wait until training goes on, or the command's end."""
        wait_for(lambda: fired.command.process.poll() is not None or fired.written() > fired.known, "a checkpoint")
        time.sleep(self.random.uniform(0, 1))
        kind = self.random.choice(["process", "driver", "node"])
        victims = self.workers(fired.victims)
        if fired.command.process.poll() is not None or (kind == "process" and not victims):
            return
        fired.known, fired.struck = fired.written(), time.time()
        fired.before()
        console.print(f"{time.strftime('%H:%M:%S')} {fired.name}: killing a {kind}", style="dim")
        if kind == "driver":
            fired.command.kill()
            fired.command = self.resume(fired.name)
        elif kind == "process":
            kill([self.random.choice(victims)])
        else:
            node = self.random.choice([1, 2])
            self.cluster.kill(node)
            self.cluster.start(node)
        wait_for(lambda: fired.command.process.poll() is not None or fired.went_on(kind), f"{kind} killed: going on")
        fired.times[kind].append(round(time.time() - fired.struck, 1))

    def training(self, kills: int) -> None:
        """Kill workers, drivers and nodes under a run, and under further ones, until all kills are spent."""
        times: dict[str, list[float]] = {"process": [], "driver": [], "node": []}
        rows: list[dict] = []
        while sum(map(len, times.values())) < kills:
            command, run = self.train(f"run-{len(rows)}")
            fired = FiredRun(command, run, times)
            while fired.command.process.poll() is None and sum(map(len, times.values())) < kills:
                self.strike(fired)
            fired.finish()
            self.judge(run.name, run, fired.seen, [], kills=0)
            rows.append(self.rows.pop())
        self.summarise("training", "worker", times, rows)

    def sweep(self, kills: int) -> None:
        """The same under sweeps, with the actors that run trials in the place of workers."""
        times: dict[str, list[float]] = {"process": [], "driver": [], "node": []}
        rows: list[dict] = []
        space = self.storage / "space.yaml"
        space.write_text(SPACE)
        options = ["--space", str(space), "--trials", str(self.trials), "--json", "--set", "scale.cpus_per_worker=1"]
        while sum(map(len, times.values())) < kills:
            name = f"sweep-{len(rows)}"
            command = Command(self.cluster, self.storage, "tune", "digits", *options, *self.options, "--name", name)
            fired = FiredSweep(command, self.storage / name, times)
            while fired.command.process.poll() is None and sum(map(len, times.values())) < kills:
                self.strike(fired)
            fired.finish()
            rows.append(fired.judged(self.trials))
        self.summarise("sweep", "trial actor", times, rows)

    def summarise(self, what: str, process: str, times: dict[str, list[float]], rows: list[dict]) -> None:
        """One row for each kind of victim; what was lost is known of the runs as a whole."""
        for kind, seconds in times.items():
            self.add(
                {
                    "fault": f"{what}: {process if kind == 'process' else kind} killed", "kills": len(seconds),
                    "finished": all(row["finished"] for row in rows), "lost": sum(row["lost"] for row in rows),
                    "twice": sum(row["twice"] for row in rows),
                    "equal": all(row["equal"] for row in rows) if "equal" in rows[0] else None, "resume_s": seconds,
                }
            )  # fmt: skip

    # --- single faults

    def head(self) -> None:
        """The head node, and the driver on it, are killed; the cluster starts again, and the run goes on."""
        command, run = self.train("head")
        wait_for(lambda: len(run.metrics()) >= 2, "two epochs")
        seen, struck = run.metrics(), time.time()
        self.cluster.kill(0)
        command.kill()
        self.cluster.restart()
        command = self.resume("head")
        wait_for(lambda: _position(run, struck), "going on")
        seconds = time.time() - struck
        command.finish()
        self.judge("head node killed and started again", run, seen, [seconds])

    def damaged(self, how: str, damage: Callable[[bytes], bytes]) -> None:
        """A file of the newest checkpoint is not what was written."""
        command, run = self.train(how.replace(" ", "-"))
        wait_for(lambda: len(run.metrics()) >= 2, "two epochs")
        command.kill()
        wait_for(lambda: not self.workers(), "the workers' end")
        seen, newest = run.metrics(), checkpoints(run.checkpoint_folder)[-1]
        file = newest / "model.safetensors"
        file.write_bytes(damage(file.read_bytes()))
        struck = time.time()
        command = self.resume(run.name)
        wait_for(lambda: _position(run, struck), "going on")
        seconds = time.time() - struck
        text = command.finish()
        # An epoch whose only checkpoint was damaged is trained again, to the same bits.
        seen = [row for row in seen if not newest.name.endswith(f"{int(row['epoch']):04d}")]
        self.judge(f"newest checkpoint {how}", run, seen, [seconds], said=f"{newest.name} is damaged" in text)

    def storage_gone(self, seconds: float) -> None:
        """The storage cannot be seen for a while."""
        parent, elsewhere = self.storage / "mount", self.storage / "elsewhere"
        parent.mkdir()
        command, run = self.train("away", storage=parent)
        wait_for(lambda: len(run.metrics()) >= 2, "two epochs")
        seen, struck = run.metrics(), time.time()
        parent.rename(elsewhere)
        time.sleep(seconds)
        made_anew = parent.exists()
        if not made_anew:
            elsewhere.rename(parent)
        wait_for(lambda: len(run.metrics()) > len(seen), "going on")
        gone = time.time() - struck
        text = command.finish()
        self.judge(
            f"storage gone for {seconds:g} s", run, seen, [gone - seconds],
            said="waiting for the storage" in (run.path / "train.log").read_text() and bool(text), made_anew=made_anew,
        )  # fmt: skip

    def disk_full(self) -> None:
        """The disk is full while a checkpoint is written; somebody makes room, and resumes."""
        disk = self.storage / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
        if (mounted := subprocess.run(mount, capture_output=True, text=True)).returncode:
            self.add({"fault": "disk full", "skipped": f"a small file system cannot be mounted: {mounted.stderr.strip()}"})
            return
        try:
            command, run = self.train("full", storage=disk)
            wait_for(lambda: len(run.metrics()) >= 2, "two epochs")
            seen, free = run.metrics(), os.statvfs(disk)
            (disk / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 30_000)))
            text = command.finish(code=1)
            half = [path.name for path in run.checkpoint_folder.glob(".*")]
            (disk / "filler").unlink()
            struck = time.time()
            command = self.resume("full", storage=disk)
            wait_for(lambda: _position(run, struck), "going on")
            seconds = time.time() - struck
            command.finish()
            self.judge("disk full", run, seen, [seconds], said="the disk of the run is full" in text, half_written=len(half))
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def hung(self, seconds: float = 10) -> None:
        """A worker is stopped for good, as by a driver that hangs."""
        command, run = self.train("hung", "--set", f"scale.hang_seconds={seconds:g}")
        wait_for(lambda: len(run.metrics()) >= 2, "two epochs")
        seen, struck = run.metrics(), time.time()
        kill(self.workers()[:1], signal.SIGSTOP)
        position = wait_for(lambda: _position(run), "where it stopped")
        wait_for(lambda: (found := _position(run, struck)) and found > position, "going on")
        gone = time.time() - struck
        text = command.finish()
        said = f"a worker made no step for {seconds:g} s and was ended" in text
        self.judge(f"worker hung, scale.hang_seconds={seconds:g}", run, seen, [gone], said=said)

    def elastic(self, epochs: int = 60) -> None:
        """A node is lost for good: one worker goes on alone; another node joins, and two do. Not in the same bits, for one
        worker updates BatchNorm's running statistics twice in a step where two average theirs."""
        fields = ["--set", "scale.workers=[1,2]", "--set", f"train.epochs={epochs}"]
        command, run = self.train("elastic", *fields)
        log = run.path / "train.log"
        wait_for(lambda: len(run.metrics()) >= 2, "two epochs")
        seen, struck = run.metrics(), time.time()
        self.cluster.kill(2)
        wait_for(lambda: "training on 1 workers" in log.read_text(), "going on with one worker")
        wait_for(lambda: _position(run, struck + 1) and len(run.metrics()) > len(seen), "an epoch of one worker")
        alone = time.time() - struck
        seen, struck = run.metrics(), time.time()
        self.cluster.start(2)
        wait_for(lambda: log.read_text().count("training on 2 workers") == 2, "growing again")
        told = time.time()
        wait_for(lambda: _position(run, told), "going on with two workers")
        grown = time.time() - struck
        command.finish()
        asked = "asked to go after step" in log.read_text()
        finished = [row["epoch"] for row in run.metrics()] == [*range(1, epochs + 1)]
        self.judge("node lost, one worker goes on, grows again", run, seen, [alone, grown], equal=None, finished=finished,
                   said=asked)  # fmt: skip

    def asked_to_go(self) -> None:
        """SIGTERM to a worker: a checkpoint at the next agreed step, and on."""
        command, run = self.train("asked")
        wait_for(lambda: len(run.metrics()) >= 2, "two epochs")
        seen, struck = run.metrics(), time.time()
        kill(self.workers()[:1], signal.SIGTERM)
        log = run.path / "train.log"
        wait_for(lambda: "asked to go after step" in log.read_text(), "the notice")
        told = time.time()
        wait_for(lambda: _position(run, told), "going on")
        gone = time.time() - struck
        text = command.finish()
        self.judge("worker asked to go (SIGTERM)", run, seen, [gone], said="a checkpoint is written" in text)


def _repeated(numbers: list[Any]) -> int:
    return len(numbers) - len({*numbers})


def _bits(run: Run) -> Any:
    """Weights after the last epoch and all curves."""
    curves = [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_second", "time")} for row in run.metrics()]
    return (checkpoints(run.checkpoint_folder)[-1] / "model.safetensors").read_bytes(), curves


def _position(run: Run, after: float = 0.0) -> tuple[int, int] | None:
    """Epoch and step, if told after a time."""
    with contextlib.suppress(Exception):
        progress = read(run.path / "progress.json", Progress)
        if progress and progress["time"] > after:
            return progress["epoch"], progress["step"]
    return None


def _written(run: Run) -> int:
    """A number that grows with every checkpoint."""
    found = checkpoints(run.checkpoint_folder) if run.checkpoint_folder.is_dir() else []
    if not found:
        return 0
    numbers = [int(number) for number in re.findall(r"\d+", found[-1].name)]
    return numbers[0] * 1_000_000 + sum(numbers[1:])


class Fired:
    """A command under fire."""

    victims = WORKER

    def __init__(self, command: Command, path: Path, times: dict[str, list[float]]):
        self.command, self.path, self.name, self.times, self.known, self.struck = command, path, path.name, times, 0, 0.0

    def finish(self) -> None:
        """Wait for the end; a driver that was killed after the last result leaves nothing to resume, and `resume` says so."""
        ended = self.command.process.wait(900) == 2 and "there is nothing to resume" in self.command.text
        self.command.finish(code=2 if ended else 0)

    def written(self) -> int:
        """A number that grows with every checkpoint."""
        raise NotImplementedError

    def before(self) -> None:
        """Note what is finished, and must stay."""
        raise NotImplementedError

    def went_on(self, kind: str) -> bool:
        """Whether a step was taken since the fault, by what it struck."""
        raise NotImplementedError


class FiredRun(Fired):
    """A training run under fire."""

    def __init__(self, command: Command, run: Run, times: dict[str, list[float]]):
        super().__init__(command, run.path, times)
        self.run, self.seen = run, list[dict]()

    def written(self) -> int:
        return _written(self.run)

    def before(self) -> None:
        self.seen = self.run.metrics()

    def went_on(self, kind: str) -> bool:
        # Until a lost node is noticed, the others may take one more step; they cannot take two.
        return _position(self.run, self.struck + 1) is not None


class FiredSweep(Fired):
    """A sweep under fire."""

    victims = ACTOR

    def __init__(self, command: Command, path: Path, times: dict[str, list[float]]):
        super().__init__(command, path, times)
        self.ended: dict[int, Any] = {}

    @property
    def runs(self) -> list[Run]:
        """The trials that have begun."""
        return [Run(path) for path in sorted(self.path.glob("trials/[0-9]*"))]

    def written(self) -> int:
        return sum(_written(run) for run in self.runs)

    def before(self) -> None:
        self.ended |= self._ended()

    def went_on(self, kind: str) -> bool:
        moved = sum(_position(run, self.struck + 1) is not None for run in self.runs)
        return moved >= (1 if kind == "driver" else 2)  # the other trial never stood still

    def _ended(self) -> dict[int, Any]:
        """Trials with a result, and what must never change about them."""
        return {int(run.name): (run.result, run.metrics()) for run in self.runs if run.state in ("finished", "stopped")}

    def judged(self, asked: int) -> dict[str, Any]:
        """What the study and the trials' folders say in the end."""
        sweep, after = Sweep.open(self.path), self._ended()
        trials = sweep.study().get_trials(deepcopy=False)
        good = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
        lost = len(trials) - len(good) + sum(after.get(number) != value for number, value in self.ended.items())
        twice = max(0, len(trials) - asked)
        for trial in trials:
            epochs = [int(row["epoch"]) for row in sweep.trial(trial.number).metrics()]
            twice += _repeated(epochs)
            lost += sorted({*epochs}) != [*range(1, len({*epochs}) + 1)] or sorted(trial.intermediate_values) != sorted(
                {*epochs}
            )
        return {"finished": len(good) == asked, "lost": lost, "twice": twice}


@contextlib.contextmanager
def faults(epochs: int, trials: int, seed: int) -> Iterator[Faults]:
    """A cluster with the uninterrupted run done."""
    found = Faults(epochs, trials, seed)
    try:
        command, _ = found.train("straight")
        command.finish()
        yield found
    finally:
        found.close()


def main() -> None:
    """Run all or some, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--away", type=float, default=30, help="seconds for which the storage is gone")
    parser.add_argument("--only", nargs="+", help="names of single cases, such as training sweep head hung")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    use_stderr()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says what it purges: an epoch that was trained again
    began = time.monotonic()
    with faults(options.epochs, options.trials, options.seed) as found:
        cases: dict[str, Callable[[], None]] = {
            "training": lambda: found.training(options.kills - options.kills // 2),
            "sweep": lambda: found.sweep(options.kills // 2),
            "head": found.head,
            "full": found.disk_full,
            "truncated": lambda: found.damaged("truncated", lambda data: data[: len(data) // 2]),
            "flipped": lambda: found.damaged("with a flipped bit", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
            "storage": lambda: found.storage_gone(options.away),
            "hung": found.hung,
            "asked": found.asked_to_go,
            "elastic": found.elastic,
        }
        if unknown := {*(options.only or [])} - {*cases}:
            parser.error(f"--only: no such case: {', '.join(sorted(unknown))}; choose from {', '.join(cases)}")
        for name in options.only or cases:
            cases[name]()
    rows = [row for row in found.rows if "skipped" not in row]
    shown = [
        [row["fault"], row["kills"], row["lost"], row["twice"], {True: "yes", False: "NO", None: ""}[row["equal"]],
         f"{statistics.median(row['resume_s']):.1f} / {max(row['resume_s']):.1f}" if row["resume_s"] else ""]
        for row in rows
    ]  # fmt: skip
    console.print(table("", ["fault", "times", "lost", "twice", "equal", "resume s"], shown, right=(1, 2, 3)))
    wrong = [row for row in rows if not row["finished"] or row["lost"] or row["twice"] or row["equal"] is False]
    wrong += [row for row in rows if row.get("said") is False or row.get("made_anew") or row.get("half_written")]
    document = {"benchmark": "faults", "seed": options.seed, "minutes": round((time.monotonic() - began) / 60, 1)}
    if options.output:
        write_json(options.output, {**document, "hardware": environment(), "results": found.rows})
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
