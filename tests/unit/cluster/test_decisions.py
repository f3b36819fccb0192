"""What is decided about workers without any: where they go, and whether they are replaced after each kind of failure."""

import pytest
import ray
import ray.exceptions
from evaluated import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from statten.cluster import recovery as module
from statten.cluster.nodes import Node, Share, alive_nodes, capacity, place
from statten.cluster.recovery import Recovery, Resizing
from statten.config import ScaleConfig, load_config
from statten.errors import Failed, UserError
from statten.storage.run import Run
from statten.training.faults import LESS_MEMORY, Diverged, Preempted
from statten.training.preflight import Preflight

LOST = ray.exceptions.ActorDiedError()
ASKED = Preempted("asked to go after step 3 of epoch 1, and a checkpoint is written")
ENOUGH = {"CPU": 4.0, "GPU": 1.0}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that an attempt of this process writes, on a cluster of four cores and a GPU."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: dict(ENOUGH))
    monkeypatch.setattr(module, "killed_for_memory", lambda: 0)
    run = Run.create(tmp_path / "run", load_config("digits", TINY))
    with run.writing() as attempt:
        run.mine = attempt
        yield run


def note(run: Run) -> str:
    return (run.path / "train.log").read_text().splitlines()[-1][9:]


# --- failures


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_lost_workers_are_replaced_so_often_and_asked_ones_always(allowed, run):
    recovery = Recovery(run.path, run.mine, allowed, {"CPU": 2.0})
    for lost in range(1, allowed + 1):
        for _ in range(3):
            recovery.after_exception(None, {0: ASKED, 1: ASKED})
            assert note(run) == f"{ASKED}; going on from the newest checkpoint", "preempted workers count as failures"
        recovery.after_exception(None, {0: LOST})
        assert note(run) == f"a worker process is gone; going on from the newest checkpoint (restart {lost} of {allowed})"
    recovery.after_exception(None, {0: LOST, 1: ASKED})  # for one that was asked, the others had to go too
    assert run.result is None
    with pytest.raises(Failed) as caught:
        recovery.after_exception(None, {0: LOST})
    times = allowed + 1
    assert (
        str(caught.value)
        == run.reason
        == (f"a worker process is gone, {times} times in this run; scale.max_failures={allowed} allows no further restart")
    )
    assert run.result["cause"] == "lost"


@pytest.mark.parametrize(
    ("error", "cause"),
    [(Diverged("the loss is not finite"), "diverged"), (UserError("train.lr: no"), "input"), (KeyError("a"), "error")],
)
def test_what_would_fail_again_stops_at_once(error, cause, run):
    with pytest.raises(Failed) as caught:
        Recovery(run.path, run.mine, 3, {}).after_exception(None, {0: LOST, 1: error})
    assert run.result["cause"] == cause and run.reason == str(caught.value) and "scale.max_failures" not in run.reason


def test_a_worker_that_was_killed_for_memory_is_not_replaced(run, monkeypatch):
    recovery = Recovery(run.path, run.mine, 3, {})
    monkeypatch.setattr(module, "killed_for_memory", lambda: 1)
    with pytest.raises(Failed):
        recovery.after_exception(None, {0: LOST})
    assert run.result["cause"] == "memory"
    assert run.reason == f"out of memory: the system ended a process for want of it; {LESS_MEMORY}"
    later = Recovery(run.path, run.mine, 3, {})
    later.after_exception(None, {0: LOST})
    assert "restart 1 of 3" in note(run), "one that was killed before this attempt says nothing"
    with pytest.raises(Failed, match="the loss"):
        monkeypatch.setattr(module, "killed_for_memory", lambda: 2)
        later.after_exception(None, {0: Diverged("the loss is not finite")})


def test_a_newer_attempt_keeps_its_result_and_a_full_disk_its_reason(run, monkeypatch):
    with pytest.raises(Failed, match="the loss"):
        Recovery(run.path, "older", 3, {}).after_exception(None, {0: Diverged("the loss is not finite")})
    assert run.result is None, "an older attempt wrote into the run of a newer one"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "fail", full)
    with pytest.raises(Failed, match="the loss"):
        Recovery(run.path, run.mine, 3, {}).after_exception(None, {0: Diverged("the loss is not finite")})


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"CPU": 4.0, "GPU": 1.0}, ""),
        ({"CPU": 8.0, "GPU": 1.0}, " as soon as the cluster has 8 CPU again"),
        ({"CPU": 8.0, "GPU": 2.0, "TPU": 0.5}, " as soon as the cluster has 8 CPU and 2 GPU and 0.5 TPU again"),
    ],
)
def test_a_cluster_that_is_too_small_is_waited_for_and_said(needs, words, run):
    Recovery(run.path, run.mine, 1, needs).after_exception(None, {0: LOST})
    assert note(run) == f"a worker process is gone; going on from the newest checkpoint (restart 1 of 1){words}"


def test_before_there_are_workers_nobody_is_asked_to_go(run):
    Resizing(run.path).before_controller_execute_resize_decision(None)
    resizing = Resizing(run.path)
    resizing.after_worker_group_start(type("Group", (), {"get_workers": lambda self: [1, 2, 3]})())
    assert note(run) == "training on 3 workers" and resizing.group is not None
    resizing.before_worker_group_shutdown(resizing.group)
    assert resizing.group is None


# --- machines


def plan(workers: int, cpus: int, device: str = "cpu", least: int | None = None) -> Preflight:
    return Preflight(1, 1, workers, device, cpus, 1, workers if least is None else least)


NODES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    sizes=NODES, groups=st.integers(1, 3), workers=st.integers(1, 5), cpus=st.integers(1, 3),
    gpus=st.sampled_from([0.0, 0.25, 1.0]), placement=st.sampled_from(["pack", "spread"]),
)  # fmt: skip
def test_every_worker_has_room_or_it_is_said(sizes, groups, workers, cpus, gpus, placement):
    machines = [Node(f"n{i}", float(c), float(g)) for i, (c, g) in enumerate(sizes)]
    scale = ScaleConfig(gpus_per_worker=gpus or 1.0, placement=placement)
    room = [int(min(c // cpus, g / gpus + 1e-9)) if gpus else c // cpus for c, g in sizes]
    asked = plan(workers, cpus, "cuda" if gpus else "cpu")
    if sum(room) < groups * workers:
        with pytest.raises(UserError, match=f"no machine has room for worker {sum(room) + 1} of {groups * workers} with"):
            place(machines, groups, asked, scale)
        return
    found = place(machines, groups, asked, scale)
    assert sum(share.workers for share in found) == groups * workers
    for share in found:
        node = int(share.node[1:])
        assert 0 < share.workers <= room[node] and share.cpus == share.workers * cpus <= sizes[node][0]
        assert share.gpus == pytest.approx(share.workers * gpus) and share.gpus <= sizes[node][1]
    if groups == 1 and placement == "pack":
        assert max(share.workers for share in found) == min(workers, max(room)), "as few machines as may be"
    if groups == 1 and placement == "spread":
        most = max(share.workers for share in found)
        held = {share.node: share.workers for share in found}
        for i, free in enumerate(room):
            assert held.get(f"n{i}", 0) >= min(free, most - 1), "no machine has two more than one that has room"


def test_elastic_groups_take_what_there_is():
    machines = [Node("a", 8, 0), Node("b", 4, 0)]
    for groups, least, most, each in ((1, 1, 9, 6), (1, 2, 3, 3), (2, 1, 9, 3), (3, 1, 9, 2)):
        found = place(machines, groups, plan(most, 2, least=least), ScaleConfig())
        assert sum(share.workers for share in found) == groups * each
    with pytest.raises(UserError, match="no machine has room for worker 7 of 8 with 2 cores; use fewer workers"):
        place(machines, 2, plan(9, 2, least=4), ScaleConfig())
    with pytest.raises(UserError, match=r"with 2 cores and 0\.5 GPU; use"):
        place(machines, 1, plan(1, 2, "cuda"), ScaleConfig(gpus_per_worker=0.5))


def test_runs_side_by_side_are_packed_each_for_itself():
    machines = [Node("a", 3, 0), Node("b", 3, 0)]
    assert place(machines, 2, plan(3, 1), ScaleConfig()) == [Share("a", 3, 3, 0.0), Share("b", 3, 3, 0.0)]
    spread = place([Node("a", 9, 0), Node("b", 4, 0)], 1, plan(3, 1), ScaleConfig(placement="spread"))
    assert spread == [Share("a", 2, 2, 0.0), Share("b", 1, 1, 0.0)], "the larger machine first"


def test_what_runs_where_in_words():
    assert str(Share("a", 1, 4, 0.0)) == "a: 1 worker, CPU cores 4"
    assert str(Share("a", 2, 4, 0.5)) == "a: 2 workers, CPU cores 4, GPUs 0.5"
    assert capacity([Node("a", 4, 1), Node("b", 2.0, 0)]) == {"CPU": 6.0, "GPU": 1.0}


def test_machines_are_called_by_host_and_address(monkeypatch):
    def node(alive: bool, host: str, address: str, **has: float) -> dict:
        return {"Alive": alive, "NodeManagerHostname": host, "NodeManagerAddress": address, "Resources": has, "NodeID": host[0]}

    listed = [
        node(True, "one", "10.0.0.1", CPU=4.0, GPU=1.0), node(False, "gone", "10.0.0.2", CPU=8.0),
        node(True, "me", "127.0.0.1"), node(True, "10.0.0.3", "10.0.0.3", CPU=2.0),
    ]  # fmt: skip
    monkeypatch.setattr(ray, "nodes", lambda: listed)
    assert alive_nodes() == [Node("one (10.0.0.1)", 4.0, 1.0, "o"), Node("me", 0.0, 0.0, "m"), Node("10.0.0.3", 2.0, 0.0, "1")]
