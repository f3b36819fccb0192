"""The machines of a cluster: what each has, what will run where, and whether all of them see a folder."""

import os
import socket
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from statten.cluster.session import ray_cluster
from statten.config import ScaleConfig
from statten.errors import UserError, first_line
from statten.machine import whole_cores
from statten.storage.mirror import mirror_of
from statten.training.preflight import Preflight

SECONDS = 60
"""For which a node may take to look for a file."""


@dataclass(frozen=True)
class Node:
    """One machine, as Ray counts it."""

    name: str
    cpus: float
    gpus: float
    id: str = ""


@dataclass(frozen=True)
class Share:
    """What runs on one machine."""

    node: str
    workers: int
    cpus: int
    """CPU cores that they hold; their loader processes run on these too."""
    gpus: float

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{self.node}: {workers}, CPU cores {self.cpus}" + (f", GPUs {self.gpus:g}" if self.gpus else "")


def survey(address: str | None) -> list[Node]:
    """The machines of the cluster at an address (or $RAY_ADDRESS), where nothing is started; without one, this machine."""
    with joined(address) as there:
        return alive_nodes() if there else [Node(socket.gethostname(), whole_cores(), torch.cuda.device_count())]


@contextmanager
def joined(address: str | None) -> Iterator[bool]:
    """Be in the cluster at an address (or $RAY_ADDRESS), where nothing is started; whether there is one."""
    there = bool(address or os.environ.get("RAY_ADDRESS"))
    with ray_cluster(address) if there else nullcontext():
        yield there


def alive_nodes() -> list[Node]:
    """The machines of the cluster that this process has joined."""
    import ray

    found = []
    for node in ray.nodes():
        if node["Alive"]:
            host, address, has = node["NodeManagerHostname"], node["NodeManagerAddress"], node["Resources"]
            name = host if address in ("127.0.0.1", host) else f"{host} ({address})"
            found.append(Node(name, has.get("CPU", 0.0), has.get("GPU", 0.0), node["NodeID"]))
    return found


def capacity(nodes: Sequence[Node]) -> dict[str, float]:
    """CPUs and GPUs of all."""
    return {"CPU": float(sum(node.cpus for node in nodes)), "GPU": float(sum(node.gpus for node in nodes))}


def place(nodes: Sequence[Node], groups: int, plan: Preflight, scale: ScaleConfig) -> list[Share]:
    """Which machine gets how many workers, as Ray's placement groups do it on a cluster that is otherwise idle.

    Args:
        nodes: the machines.
        groups: runs (trials) side by side; each is placed for itself, as `scale.placement` says.
        plan: workers of each run, and what one holds.

    Raises:
        UserError: a worker finds no room although the machines have enough in sum.
    """
    cpus = plan.cpus_per_worker
    gpus = scale.gpus_per_worker if plan.device == "cuda" else 0.0
    room = [int(min(node.cpus // cpus, node.gpus / gpus + 1e-9 if gpus else node.cpus)) for node in nodes]
    workers = max(plan.min_workers, min(plan.world_size, sum(room) // groups))
    held = [0] * len(nodes)
    for _ in range(groups):
        mine = [0] * len(nodes)
        for _ in range(workers):
            free = [i for i in range(len(nodes)) if room[i] > held[i]]
            if not free:
                raise UserError(
                    f"scale.cpus_per_worker: no machine has room for worker {sum(held) + 1} of {groups * workers} with {cpus} "
                    f"cores" + (f" and {gpus:g} GPU" if gpus else "") + "; use fewer workers, or fewer cores for each"
                )
            if scale.placement == "spread":
                chosen = min(free, key=lambda i: (mine[i], held[i] - room[i]))
            else:  # where this run is already, else where the most room is
                chosen = max(free, key=lambda i: (mine[i] > 0, room[i] - held[i]))
            mine[chosen] += 1
            held[chosen] += 1
    return [Share(nodes[i].name, n, n * cpus, round(n * gpus, 6)) for i, n in enumerate(held) if n]


def placed(shares: Sequence[Share]) -> list[str]:
    """A line for each machine; those that are alike, such as several nodes on one host, share one."""
    return [f"{count} x on {share}" if count > 1 else f"on {share}" for share, count in Counter(map(str, shares)).items()]


def check_shared(folder: Path, what: str = "--storage", mirrored: bool = True) -> None:
    """Raise UserError where a machine of the cluster does not see a folder, that is yet to be made perhaps.

    A file is made in it (or in the nearest folder above that is there), and a task on every machine looks for it. A machine
    that is lost meanwhile has no say.

    Args:
        folder: on this machine.
        what: the option or field that names it.
        mirrored: whether the working copy of an object store will do, for workers then have copies of their own.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = alive_nodes()
    if len(nodes) < 2 or (mirrored and mirror_of(folder)):
        return
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    probe = there / f".visible-{uuid.uuid4().hex}"
    probe.touch()
    try:
        seen = ray.remote(num_cpus=0)(os.path.exists)
        looks = {
            node: seen.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(str(probe))
            for node in nodes
        }
        blind = []
        for node, look in looks.items():
            try:
                if not ray.get(look, timeout=SECONDS):
                    blind.append(node.name)
            except ray.exceptions.RayError as error:
                if node not in alive_nodes():
                    continue  # lost since it was listed: nothing will run there
                raise UserError(f"{what}: {node.name} does not answer: {first_line(error)}") from None
    finally:
        probe.unlink(missing_ok=True)
    if blind:
        names = ", ".join(dict.fromkeys(blind))
        raise UserError(
            f"{what}: {folder} is not seen by {names}; name a folder that all machines of the cluster see, such as one on NFS"
            + (", or an object store such as s3://bucket/runs" if mirrored else "")
        )
