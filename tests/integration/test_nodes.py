"""Two machines, each a Ray node with working copies of its own: what runs where, what all see, runs in an object store."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import object_store
import pytest
import ray
from ray.cluster_utils import Cluster

from statten import search
from statten.cluster import nodes, trainer
from statten.cluster.nodes import Node
from statten.cluster.session import forget_token, ray_cluster
from statten.cluster.token import make_token
from statten.config import ScaleConfig, load_config
from statten.display import run as display_run
from statten.errors import UserError
from statten.report import report
from statten.space.loading import load_space
from statten.storage import mirror
from statten.storage.run import Run, locate
from statten.storage.store import Store, working_copy
from statten.training.preflight import Preflight

SMALL = {
    "model.depth": 1,
    "model.embed_dim": 32,
    "train.epochs": 2,
    "train.warmup_epochs": 0,
    "scale.cpus_per_worker": 1,
    "scale.neuron_backend": "torch",  # nothing to compile in new caches
}


def plan(workers: int, cpus: int, device: str = "cpu") -> Preflight:
    return Preflight(1, 1, workers, device, cpus, 1, workers)


def workers_of(found) -> dict[str, int]:
    return {share.node: share.workers for share in found}


def test_packing_fills_machines_and_spreading_takes_them_in_turn():
    machines = [Node("a", 8, 2), Node("b", 16, 4), Node("c", 4, 4)]
    pack, spread = ScaleConfig(), ScaleConfig(placement="spread")
    assert workers_of(nodes.place(machines, 1, plan(4, 4), pack)) == {"b": 4}
    assert workers_of(nodes.place(machines, 1, plan(6, 4), pack)) == {"a": 2, "b": 4}
    assert workers_of(nodes.place(machines, 1, plan(4, 4), spread)) == {"a": 1, "b": 2, "c": 1}
    assert workers_of(nodes.place(machines, 1, plan(6, 2, "cuda"), pack)) == {"b": 4, "a": 2}
    # Many small trials on big machines: four on each GPU.
    share = nodes.place(machines, 16, plan(1, 1, "cuda"), ScaleConfig(gpus_per_worker=0.25))
    assert sum(s.workers for s in share) == 16 and all(s.gpus == s.workers / 4 for s in share)
    with pytest.raises(UserError, match="no machine has room for worker 4 of 4 with 6 cores; use fewer workers, or fewer"):
        nodes.place([Node("a", 9, 0), Node("b", 9, 0), Node("c", 9, 0)], 1, plan(4, 6), pack)


def test_nodes_that_are_alike_share_a_line():
    share = nodes.Share("vm", 1, 2, 0)
    assert nodes.placed([share, nodes.Share("other", 1, 2, 0.5), share]) == [
        "2 x on vm: 1 worker, CPU cores 2",
        "on other: 1 worker, CPU cores 2, GPUs 0.5",
    ]


@pytest.fixture(scope="module")
def server():
    with object_store.serving() as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The driver's machine has no cores, so that all work is done on the other one, which has folders of its own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as short:
        for name, value in {**object_store.ENVIRONMENT, "RAY_TMPDIR": short, "RAY_AUTH_MODE": "token"}.items():
            patch.setenv(name, value)
        patch.setattr(mirror, "SETTLE", 0.1)
        make_token()
        forget_token()
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.cache = tmp_path_factory.mktemp("other")
        made.other = made.add_node(num_cpus=2, env_vars={"STATTEN_CACHE": str(made.cache)})
        patch.setenv("STATTEN_CACHE", str(tmp_path_factory.mktemp("driver")))
        try:
            with ray_cluster(made.address):
                made.wait_for_nodes()
                yield made
        finally:
            made.shutdown()
    forget_token()


@pytest.mark.slow
def test_a_folder_that_one_machine_does_not_see_is_refused(cluster, tmp_path):
    assert sorted(node.cpus for node in nodes.alive_nodes()) == [0, 2]
    nodes.check_shared(tmp_path / "runs" / "of" / "all")
    assert list(tmp_path.iterdir()) == [], "nothing is left"
    handle = os.open(tmp_path, os.O_RDONLY)  # the name of an open folder means something to its process alone
    try:
        mine = Path(f"/proc/self/fd/{handle}/runs")
        sentence = re.escape(f"--storage: {mine} is not seen by ") + r".*; name a folder that all machines .* s3://bucket/runs"
        with pytest.raises(UserError, match=sentence):
            trainer.train(load_config("digits", SMALL), mine / "a")
    finally:
        os.close(handle)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_machine_that_is_lost_while_it_is_asked_has_no_say(cluster, tmp_path, monkeypatch):
    lost, there = Node("lost", 1, 0, "a" * 56), nodes.alive_nodes()
    listed = iter([[lost, *there], there])
    monkeypatch.setattr(nodes, "alive_nodes", lambda: next(listed))
    nodes.check_shared(tmp_path)
    monkeypatch.setattr(nodes, "alive_nodes", lambda: [lost, *there])
    with pytest.raises(UserError, match=r"^--storage: lost does not answer: "):
        nodes.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_in_a_store_trains_on_a_machine_that_shares_no_folder_with_the_driver(cluster, server, monkeypatch, capsys):
    monkeypatch.setattr(display_run, "REFRESH", 0.5)
    storage = working_copy(server.uri())
    run = trainer.train(load_config("digits", {**SMALL, "scale.workers": 2, "scale.placement": "spread"}), storage / "far")
    shown = "".join(capsys.readouterr())  # where commands print depends on the last one in this process
    assert "2 workers, CPU cores 2" in shown and "epoch 2/2" in shown, "followed through the store"
    assert run.state == "finished" and not list(run.checkpoint_folder.glob("*")), "trained elsewhere"
    (copy,) = cluster.cache.glob("*/far")
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["epoch-0001", "epoch-0002"]
    assert json.loads((copy / "result.json").read_text()) == run.result
    best = Run.open(locate("far", storage)).best_checkpoint()
    assert best.is_relative_to(storage) and (best / "model.safetensors").is_file()
    left = {path.name for path in run.path.iterdir()}
    assert "ray" not in left and ray.is_initialized()


@pytest.mark.slow
def test_trials_of_a_sweep_in_a_store_train_there_too(cluster, server, tmp_path):
    (tmp_path / "space.yaml").write_text("train.lr: {choices: [0.001, 0.002]}\n")
    config = load_config("digits", {**SMALL, "search.trials": 2})
    storage = working_copy(server.uri("sweeps"))
    sweep = search.tune(config, load_space(tmp_path / "space.yaml", config), storage / "s")
    assert not list(sweep.path.rglob("*.safetensors")) and list(cluster.cache.glob("*/s/trials/000[01]/checkpoints/epoch-0002"))
    shutil.rmtree(storage)
    seen = search.Sweep.open(locate("s", working_copy(server.uri("sweeps"))))
    assert [trial.state.name for trial, _ in seen.rows()] == ["COMPLETE", "COMPLETE"]
    written = report(seen, rates=False)["files"]["page"]
    assert Path(written).is_file() and f"s/{Path(written).relative_to(seen.path)}" in Store(server.uri("sweeps")).listing()
    best = seen.best()
    assert best["value"] == sweep_value(seen) and (Path(best["checkpoint"]) / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_on_a_machine_that_is_to_be_taken_away_writes_a_checkpoint_and_goes_on_elsewhere(cluster, tmp_path):
    """What an autoscaler does when a spot machine is about to be preempted: it drains the node, with a deadline."""
    config = load_config("digits", {**SMALL, "train.epochs": 16, "scale.workers": 2})
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(trainer.train, config, tmp_path / "r")
        run = Run(tmp_path / "r")
        wait_for(lambda: training.done() or run.metrics(), 120)
        cluster.add_node(num_cpus=2, env_vars={"STATTEN_CACHE": str(cluster.cache)})
        drain(cluster, cluster.other)
        training.result(180)
    log = (run.path / "train.log").read_text()
    assert re.search(r"asked to go after step \d+ of epoch \d+, and a checkpoint is written; going on from the newest", log)
    assert run.state == "finished" and [row["epoch"] for row in run.metrics()] == [*range(1, 17)]


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def drain(cluster, node) -> None:
    ray_drain = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address]
    reason = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot --deadline-remaining-seconds 60"
    subprocess.run([*ray_drain, "--node-id", node.node_id, *reason.split()], check=True, capture_output=True, timeout=60)


def sweep_value(sweep) -> float:
    return max(row["val/top1"] for number in (0, 1) for row in sweep.trial(number).metrics())
