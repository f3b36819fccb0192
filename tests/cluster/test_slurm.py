"""A real Slurm of two machines without names, a route to the outside or a DNS: cluster/slurm.sh as a user types it."""

import json
import re
import sys

import pytest
from machines import ROOT, SLURM, Slurm, wait_for

from statten.search.sweep import Sweep
from statten.storage.run import Run

SCRIPT = ROOT / "cluster" / "slurm.sh"
TRAIN = """\
command: train
recipe: digits
resources: {workers: 2, device: cpu, cpus_per_worker: 1, neuron_backend: torch}
overrides:
  {model.depth: 1, model.embed_dim: 32, train.epochs: EPOCHS, train.warmup_epochs: 0, train.checkpoint_every_steps: 4,
   scale.placement: spread}
"""
SWEEP = """\
command: tune
recipe: digits
space: space.yaml
name: sweep
trials: 3
resources: {device: cpu, cpus_per_worker: 1, neuron_backend: torch}
overrides:
  {model.depth: 1, model.embed_dim: 32, train.epochs: 2, train.warmup_epochs: 0, data.fraction: 0.5,
   search.scheduler: none, search.firing_range: null, search.max_concurrent: 1}
"""


@pytest.fixture(scope="module")
def slurm(machines):
    made = machines("login", "n1", "n2", programs=SLURM, one_home=True, know_names=False)
    made.cwd = made.shared
    (made.shared / "job.yaml").write_text(TRAIN.replace("EPOCHS", "14"))
    (made.shared / "long.yaml").write_text(TRAIN.replace("EPOCHS", "500").replace("workers: 2", "workers: 1"))
    (made.shared / "sweep.yaml").write_text(SWEEP)
    (made.shared / "space.yaml").write_text("train.lr: {choices: [0.001, 0.002, 0.004]}\n")
    return Slurm(made, cpus=4)


@pytest.fixture
def sbatch(slurm):
    """sbatch, for machines of one core each and no GPU; afterwards nothing of any job may be on any machine."""
    before = {node.name: len(node.pids()) for node in slurm.nodes}

    def submit(*words: object) -> int:
        few = ("--cpus-per-task=1", "--gpus-per-node=0")
        return slurm.submit(*few, *words, STATTEN_VENV=sys.prefix)

    yield submit
    slurm.control.run("scancel", "--user=root")
    wait_for(slurm.idle, "the end of all jobs", 60)
    for node in slurm.nodes:
        wait_for(lambda node=node: len(node.pids()) <= before[node.name], f"an empty machine: {node.run('ps', 'ax')}", 60)
        assert not node.bash("ls -d /tmp/ray* /tmp/tmp* 2>/dev/null", check=False), "no file of Ray's stays"


def said(slurm: Slurm, job: int) -> str:
    return "".join(path.read_text() for path in sorted(slurm.machines.shared.glob(f"slurm-{job}.*")))


def epochs(run: Run) -> list[int]:
    return [row["epoch"] for row in run.metrics()] if run.path.is_dir() else []


@pytest.mark.slow
def test_training_over_two_machines_goes_on_in_the_same_file(slurm, sbatch):
    """Its time is up, then a machine loses its power; Slurm starts it again both times."""
    run = Run(slurm.machines.shared / "runs" / "job")
    job = sbatch("--nodes=2", SCRIPT, "job.yaml", "--storage", run.path.parent)
    wait_for(lambda: len(epochs(run)) >= 2 or slurm.state(job) == "FAILED", "two epochs", 180)
    first = run.metrics()
    assert len(first) < 14, said(slurm, job)
    slurm.control.run("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: "the time is up; the job goes on later" in said(slurm, job), "the notice")
    wait_for(lambda: len(epochs(run)) > len(first) + 1, "going on", 180)
    second = run.metrics()
    assert len(second) < 14, said(slurm, job)
    slurm.nodes[1].power_off()
    wait_for(lambda: slurm.state(job) != "RUNNING", "Slurm to notice", 90)
    slurm.nodes[1].boot()
    slurm.serve(slurm.nodes[1])
    assert slurm.wait(job) == "COMPLETED", said(slurm, job)
    rows = run.metrics()
    assert Run.open(run.path).state == "finished" and [row["epoch"] for row in rows] == [*range(1, 15)]
    assert rows[: len(first)] == first and rows[: len(second)] == second, "no finished epoch was trained again"
    out = said(slurm, job)
    assert out.count(f"2 machines at {slurm.nodes[0].address}:") == 3, "one file for all three"
    assert len(re.findall(r"on n[12] \(10\.77\.0\.1[23]\): 1 worker, CPU cores 1", out)) == 6


@pytest.mark.slow
def test_jobs_side_by_side_on_one_machine(slurm, sbatch):
    """A sweep that is put back into the queue by hand, and a run that is cancelled, share a machine."""
    storage = slurm.machines.shared / "several"
    alone = ("--nodes=1", "--nodelist=n1", "--oversubscribe")
    sweep, cancelled = (sbatch(*alone, SCRIPT, f"{name}.yaml", "--storage", storage) for name in ("sweep", "long"))
    run = Run(storage / "long")
    wait_for(lambda: (storage / "sweep/trials/0000/result.json").is_file() and epochs(run), "a trial and an epoch", 240)
    assert slurm.state(sweep) == slurm.state(cancelled) == "RUNNING", "at the same time"
    done = json.loads((storage / "sweep/trials/0000/result.json").read_text())
    slurm.control.run("scontrol", "requeue", sweep)
    slurm.control.run("scancel", cancelled)
    assert slurm.wait(cancelled, 60) == "CANCELLED", said(slurm, cancelled)
    assert Run.open(run.path).state != "finished" and "Traceback" not in said(slurm, cancelled)
    assert slurm.wait(sweep) == "COMPLETED", said(slurm, sweep)
    assert [trial.state.name for trial, _ in Sweep.open(storage / "sweep").rows()] == ["COMPLETE"] * 3
    assert json.loads((storage / "sweep/trials/0000/result.json").read_text()) == done, "finished before, and untouched"
    assert said(slurm, sweep).count("1 machines at") == 2
