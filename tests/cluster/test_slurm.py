"""A real Slurm of two machines without names, a route to the outside or a DNS: cluster/slurm.sh as a user types it."""

import re
import sys

import pytest
from machines import ROOT, SLURM, Slurm, wait_for

from statten.search.sweep import Sweep
from statten.storage.run import Run

EPOCHS = 14
ENDED = ("COMPLETED", "FAILED")
SCRIPT = ROOT / "cluster" / "slurm.sh"
TRAIN = """\
command: train
recipe: digits
resources: {workers: 2, device: cpu, cpus_per_worker: 1, neuron_backend: torch}
overrides:
  {model.depth: 1, model.embed_dim: 32, train.epochs: EPOCHS, train.warmup_epochs: 0, data.fraction: 0.5,
   scale.placement: spread}
"""
SWEEP = """\
command: tune
recipe: digits
space: space.yaml
name: sweep
trials: 40
resources: {device: cpu, cpus_per_worker: 1, neuron_backend: torch}
overrides:
  {model.depth: 1, model.embed_dim: 32, train.epochs: 2, train.warmup_epochs: 0, data.fraction: 0.5,
   search.scheduler: none, search.firing_range: null, search.max_concurrent: 1}
"""


@pytest.fixture(scope="module")
def slurm(machines):
    made = machines("login", "n1", "n2", programs=SLURM, one_home=True, know_names=False)
    made.cwd = made.shared
    (made.shared / "job.yaml").write_text(TRAIN.replace("EPOCHS", str(EPOCHS)))
    (made.shared / "sweep.yaml").write_text(SWEEP)
    (made.shared / "space.yaml").write_text("train.lr: {float: [0.001, 0.004]}\n")
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
def test_jobs_are_put_back_into_the_queue_and_go_on_in_the_same_files(slurm, sbatch):
    """A run over two machines, whose time is up, and beside it on one of them a sweep, put back by hand and then cancelled."""
    storage = slurm.machines.shared / "runs"
    run, first = Run(storage / "job"), storage / "sweep/trials/0000/result.json"
    job = sbatch("--nodes=2", "--oversubscribe", SCRIPT, "job.yaml", "--storage", storage)
    sweep = sbatch("--nodes=1", "--oversubscribe", "--nodelist=n1", SCRIPT, "sweep.yaml", "--storage", storage)
    wait_for(lambda: (epochs(run) and first.is_file()) or slurm.state(job) in ENDED, "an epoch and a trial", 240)
    assert slurm.state(job) == slurm.state(sweep) == "RUNNING", said(slurm, job) + said(slurm, sweep)
    seen, result, attempt = run.metrics(), first.read_text(), (storage / "sweep/attempt").read_text()
    slurm.control.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm sends it two minutes before the end
    slurm.control.run("scontrol", "requeue", sweep)

    wait_for(lambda: (storage / "sweep/attempt").read_text() != attempt, "the sweep to go on", 240)
    slurm.control.run("scancel", sweep)
    assert slurm.wait(sweep, 60) == "CANCELLED"
    assert slurm.wait(job) == "COMPLETED", said(slurm, job)
    rows = run.metrics()
    assert Run.open(run.path).state == "finished" and [row["epoch"] for row in rows] == [*range(1, EPOCHS + 1)]
    assert rows[: len(seen)] == seen and first.read_text() == result, "what was finished is not done again"
    assert all(trial.state.name != "FAIL" for trial, _ in Sweep.open(storage / "sweep").rows())

    out, swept = said(slurm, job), said(slurm, sweep)
    assert out.count(f"2 machines at {slurm.nodes[0].address}:") == 2 and swept.count("1 machines at") == 2
    assert "the time is up; the job goes on later" in out and "Traceback" not in out + swept
    assert len(re.findall(r"on n[12] \(10\.77\.0\.1[23]\): 1 worker, CPU cores 1", out)) == 4
