"""What a run and a sweep survive of cut networks and lost power, on machines with addresses and links of their own.

python benchmarks/networks.py [--times 1] [--only NAME ...] [--output benchmarks/networks-cpu.json]

benchmarks/machines.py makes a head without cores for workers, two machines of one core each, and one with an S3 server; it
needs root. `ray start` runs on each under a loop that starts it again, as systemd would. The storage is a folder that all see
whatever happens to the network, or the S3 server. When the link or the machine is back, nobody types anything. The columns
are those of benchmarks/faults.py, but for

    resume    seconds from the moment when the link or the machine is back to the next new step; 0 where training never stood

Ends with exit code 1 if anything was lost, twice or unequal.
"""

import argparse
import contextlib
import logging
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import SMALL, SPACE, FiredSweep, _bits, _position, _repeated
from machines import Command, Machine, Machines, missing, wait_for

from statten.display import console, table, use_stderr
from statten.files import write_json
from statten.machine import environment
from statten.storage.events import tag
from statten.storage.run import Run

Act = Callable[[], object]
S3 = {
    "AWS_ACCESS_KEY_ID": "key-of-the-benchmark", "AWS_SECRET_ACCESS_KEY": "secret-of-the-benchmark",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip
FIELDS = f"{SMALL} --set train.checkpoint_every_steps=4 --set data.fraction=0.5 --set scale.cpus_per_worker=1"
FIELDS += " --set scale.neuron_backend=torch"
BUCKET = "import boto3; boto3.client('s3', endpoint_url='{}').create_bucket(Bucket='bucket')"

COMPLETE = """
import time, ray
while True:
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
        while ray.cluster_resources().get("CPU", 0) != 2:
            time.sleep(0.5)
        break
    except Exception:
        time.sleep(1)
"""


class Site:
    """The machines, Ray on them, and the run to which nothing happened."""

    def __init__(self, epochs: int, output: Path | None):
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_USAGE_STATS_ENABLED": "0"}
        self.machines = Machines("head", "w1", "w2", "store", environment={**token, **S3, "OMP_NUM_THREADS": "1"})
        self.head, self.w1, self.w2, self.store = self.machines
        self.storage, self.epochs = self.machines.shared / "runs", epochs
        self.storage.mkdir()
        self.rows: list[dict[str, Any]] = []
        self.output, self.began = output, time.monotonic()
        for machine in (self.head, self.w1, self.w2):
            self.serve(machine)

    def close(self) -> None:
        """Leave nothing behind."""
        self.machines.close()

    def serve(self, machine: Machine) -> None:
        """Keep Ray running on a machine; again after it was booted."""
        role = "--head --port=6379 --num-cpus=0 --include-dashboard=false"
        if machine is not self.head:
            role = f"--address={self.head.address}:6379 --num-cpus=1"
        options = f"--node-ip-address={machine.address} --object-store-memory=100000000 --disable-usage-stats"
        machine.start("bash", "-c", f"while :; do ray start --block {role} {options}; sleep 1; done")

    def complete(self) -> None:
        """Wait until both machines of workers are in the cluster."""
        self.head.run("python", "-c", COMPLETE, seconds=300, RAY_ADDRESS=f"{self.head.address}:6379")

    def command(self, *words: object) -> Command:
        """A statten command on the head, which joins the cluster."""
        return self.head.start("python", "-m", "statten.cli", *words, RAY_ADDRESS=f"{self.head.address}:6379")

    def train(self, name: str, *options: str, storage: str | Path | None = None) -> Command:
        """A run on both machines."""
        fields = f"{FIELDS} --set train.epochs={self.epochs} --set scale.workers=2".split()
        fields += options
        return self.command("train", "digits", *fields, "--name", name, "--storage", storage or self.storage)

    # --- one fault

    def training(self, what: str, name: str, seconds: float, strike: Act, undo: Act, *options: str, **more: Any) -> None:
        """Two epochs, a fault, some seconds, its end; then nobody does anything until the run is finished."""
        command, run = self.train(name, *options), Run(self.storage / name)
        _await(command, lambda: len(run.metrics()) >= 2)
        seen = run.metrics()
        strike()
        time.sleep(seconds)
        stood = _position(run)
        undo()
        back = time.time()
        _await(command, lambda: _position(run, back) and _position(run) != stood)
        resumed = time.time() - back
        _finish(command)
        equal = None if "equal" in more else _bits(run) == _bits(Run(self.storage / "straight"))
        self.judge(what, run, seen, resumed, equal, restarts=(run.path / "train.log").read_text().count("going on from"))

    def judge(self, what: str, run: Run, seen: list[dict], resumed: float, equal: bool | None, **more: Any) -> None:
        """Add a row for a finished run; `seen` are the rows that were there when the fault struck."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        rows = run.metrics()
        numbers = [row["epoch"] for row in rows]
        events = [event.step for event in EventAccumulator(str(run.path)).Reload().Scalars(tag("val/top1"))]
        self.add(
            {
                "fault": what, "finished": run.state == "finished" and numbers == [*range(1, self.epochs + 1)],
                "lost": sum(row not in rows for row in seen), "twice": _repeated(numbers) + _repeated(events), "equal": equal,
                "resume_s": round(resumed, 1), **more,
            }
        )  # fmt: skip

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, print it, and write all, for the next case may take long."""
        self.rows.append(row)
        console.print(time.strftime("%H:%M:%S ") + " ".join(f"{key}={value}" for key, value in row.items()))
        if self.output:
            minutes = round((time.monotonic() - self.began) / 60, 1)
            document = {"benchmark": "networks", "minutes": minutes, "hardware": environment(), "results": self.rows}
            write_json(self.output, document)

    def sweep(self, what: str, name: str, seconds: float, strike: Act, undo: Act) -> None:
        """The same under a sweep of trials of one worker each, which a machine that is cut off can go on with alone."""
        space = self.machines.shared / "space.yaml"
        space.write_text(SPACE)
        trials = 4
        fields = f"{FIELDS} --set train.epochs={self.epochs}".split()
        fields += ["--set", "search.scheduler=none", "--set", "search.firing_range=null"]
        words = ["tune", "digits", "--space", space, "--trials", trials, *fields, "--name", name, "--storage", self.storage]
        command = self.command(*words)
        fired = FiredSweep(None, self.storage / name, {})  # type: ignore[arg-type] # only its eyes are needed
        _await(command, lambda: sum(bool(run.metrics()) for run in fired.runs) >= 2)
        fired.before()
        strike()
        time.sleep(seconds)
        undo()
        back = time.time()
        running = [run for run in fired.runs if not run.ended]
        _await(command, lambda: all(run.ended or _position(run, back) for run in running))
        resumed = time.time() - back
        _finish(command)
        self.add({"fault": what, **fired.judged(trials), "equal": None, "resume_s": round(resumed, 1)})

    # --- the store

    def store_cut(self, what: str, name: str, seconds: float) -> None:
        """The S3 server's link is cut when a checkpoint has just begun its way there."""
        endpoint = f"http://{self.store.address}:9000"
        server = self.store.start("moto_server", "-H", "0.0.0.0", "-p", "9000")
        knock = f"(: </dev/tcp/{self.store.address}/9000) 2>/dev/null && echo there"
        wait_for(lambda: "there" in self.head.bash(knock, check=False), "moto", every=0.5)
        self.head.run("python", "-c", BUCKET.format(endpoint))
        command = self.train(name, storage=f"s3://bucket/{name}?endpoint_override={endpoint}")
        copies = [machine.home / ".cache" / "statten" for machine in (self.head, self.w1, self.w2)]

        def written() -> set[str]:
            return {path.name for copy in copies for path in copy.glob(f"*/{name}/checkpoints/epoch-*")}

        _await(command, lambda: any(epoch >= "epoch-0003" for epoch in written()))
        (mine,) = copies[0].glob(f"*/{name}")
        before, seen = written(), Run(mine).metrics()
        _await(command, lambda: written() - before)
        self.store.cut()
        time.sleep(seconds)
        self.store.mend()
        back, known = time.time(), written()
        _await(command, lambda: written() - known)
        resumed = time.time() - back
        _finish(command)
        run, numbers = Run(mine), [row["epoch"] for row in Run(mine).metrics()]
        weights = [w for c in copies for w in c.glob(f"*/{name}/checkpoints/epoch-{self.epochs:04d}/model.safetensors")]
        straight = Run(self.storage / "straight").checkpoint_folder / f"epoch-{self.epochs:04d}" / "model.safetensors"
        self.add(
            {
                "fault": what, "finished": run.state == "finished" and numbers == [*range(1, self.epochs + 1)],
                "lost": sum(row not in run.metrics() for row in seen), "twice": _repeated(numbers),
                "equal": any(w.read_bytes() == straight.read_bytes() for w in weights), "resume_s": round(resumed, 1),
            }
        )  # fmt: skip
        server.signal(15)
        server.wait()


def _await(command: Command, condition: Callable[[], Any], seconds: float = 600) -> None:
    """Wait for something that a command brings about, or for its end."""

    def there() -> Any:
        with contextlib.suppress(Exception):  # a file that is not there yet
            return condition()

    wait_for(lambda: command.code is not None or there(), f"{' '.join(command.words)}:\n{command.text}", seconds, 0.05)


def _finish(command: Command) -> None:
    if code := command.wait(900):
        raise RuntimeError(f"ended with {code}:\n{command.text}")


def main() -> None:
    """Run all or some, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="how often each case")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", nargs="+", help="names of single cases")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if reason := missing():
        parser.exit(2, f"{reason}\n")
    use_stderr()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    site = Site(options.epochs, options.output)
    head, w2 = site.head, site.w2

    def boot() -> None:
        w2.boot()
        site.serve(w2)

    def nothing() -> None:
        pass

    elastic = ("--set", "scale.workers=[1,2]", "--set", f"train.epochs={options.epochs}")
    cases: dict[str, Callable[[str, str], None]] = {
        "cut-5": lambda what, name: site.training(what, name, 5, w2.cut, w2.mend),
        "cut-30": lambda what, name: site.training(what, name, 30, w2.cut, w2.mend),
        "cut-120": lambda what, name: site.training(what, name, 120, w2.cut, w2.mend),
        "mute-30": lambda what, name: site.training(what, name, 30, w2.mute, w2.mend),
        "deaf-30": lambda what, name: site.training(what, name, 30, w2.deafen, w2.mend),
        "slow": lambda what, name: site.training(what, name, 0, lambda: w2.slow(0.025, 0.01), nothing),
        "head-30": lambda what, name: site.training(what, name, 30, head.cut, head.mend),
        "head-120": lambda what, name: site.training(what, name, 120, head.cut, head.mend),
        "frozen-60": lambda what, name: site.training(what, name, 60, w2.freeze, w2.thaw),
        "frozen-120": lambda what, name: site.training(what, name, 120, w2.freeze, w2.thaw),
        "power": lambda what, name: site.training(what, name, 5, w2.power_off, boot),
        "elastic-120": lambda what, name: site.training(what, name, 120, w2.cut, w2.mend, *elastic, equal=None),
        "store-30": lambda what, name: site.store_cut(what, name, 30),
        "sweep-cut-30": lambda what, name: site.sweep(what, name, 30, w2.cut, w2.mend),
        "sweep-cut-120": lambda what, name: site.sweep(what, name, 120, w2.cut, w2.mend),
        "sweep-frozen-120": lambda what, name: site.sweep(what, name, 120, w2.freeze, w2.thaw),
        "sweep-power": lambda what, name: site.sweep(what, name, 5, w2.power_off, boot),
        "sweep-slow": lambda what, name: site.sweep(what, name, 0, lambda: w2.slow(0.025, 0.01), nothing),
    }
    if unknown := {*(options.only or [])} - {*cases}:
        site.close()
        parser.error(f"--only: no such case: {', '.join(sorted(unknown))}; choose from {', '.join(cases)}")
    try:
        site.complete()
        _finish(site.train("straight"))
        for name in options.only or cases:
            for turn in range(options.times):
                try:
                    cases[name](name, f"{name}-{turn}")
                except (RuntimeError, TimeoutError) as error:
                    console.print(str(error), markup=False)
                    site.add({"fault": name, "finished": False, "lost": 0, "twice": 0, "equal": None, "resume_s": None})
                w2.mend()
                site.complete()
    finally:
        site.close()
    shown = []
    for name in options.only or cases:
        rows = [row for row in site.rows if row["fault"] == name]
        times = [row["resume_s"] for row in rows if row["resume_s"] is not None]
        equal = {row["equal"] for row in rows}
        shown.append(
            [
                name, len(rows), sum(row["finished"] for row in rows), sum(row["lost"] for row in rows),
                sum(row["twice"] for row in rows), "" if equal == {None} else "NO" if False in equal else "yes",
                f"{statistics.median(times):.1f} / {max(times):.1f}" if times else "",
            ]
        )  # fmt: skip
    console.print(table("", ["fault", "times", "finished", "lost", "twice", "equal", "resume s"], shown, right=(1, 2, 3, 4)))
    sys.exit(any(not row["finished"] or row["lost"] or row["twice"] or row["equal"] is False for row in site.rows))


if __name__ == "__main__":
    main()
