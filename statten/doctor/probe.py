"""Looks at every node of a Ray cluster, for `statten doctor --address`: prints one line of JSON.

    python probe.py ADDRESS [STORAGE]

A program of its own that needs Ray alone, so that it can be sent to a cluster where statten is missing. An empty ADDRESS means
the cluster that a submitted job is in, an empty STORAGE that cluster's $STATTEN_STORAGE.
"""

import contextlib
import importlib
import json
import os
import platform
import socket
import sys
import time
import uuid
from importlib import metadata
from typing import Any

PREFIX = "statten probe: "
PACKAGES = ("ray", "torch", "statten")
SECONDS = 90.0  # for each round of tasks
ELEMENTS = 2**20  # float32 values that are summed over all nodes


def look(storage: str, mark: str) -> dict[str, Any]:
    """What a node is; also writes a file of its own into the storage."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    found = {"host": socket.gethostname(), "python": platform.python_version(), "versions": versions}
    return {**found, "storage": storage or os.environ.get("STATTEN_STORAGE", ""), "mark": mark, "wrote": _write(storage, mark)}


def read(storage: str, marks: list[str], remove: bool) -> list[str]:
    """The marks whose files cannot be seen from this node; afterwards they are removed."""
    filesystem, folder = _open(storage)
    missing = []
    for mark in marks:
        try:
            with filesystem.open_input_stream(f"{folder}/.statten-doctor-{mark}") as file:
                if file.read().decode() != mark:
                    missing.append(mark)
        except OSError:
            missing.append(mark)
    if remove:
        for mark in marks:
            with contextlib.suppress(OSError):  # another node's own disk
                filesystem.delete_file(f"{folder}/.statten-doctor-{mark}")
    return missing


def all_reduce(backend: str, rank: int, size: int, url: str) -> float:
    """Sum a vector over all nodes, check the sum, and return the seconds of the second time."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    device = "cuda" if backend == "nccl" else "cpu"
    dist.init_process_group(backend, url, timedelta(seconds=SECONDS), world_size=size, rank=rank)
    try:
        seconds = 0.0
        for _ in range(2):
            values = torch.full((ELEMENTS,), float(rank + 1), device=device)
            began = time.monotonic()
            dist.all_reduce(values)
            total = values.sum().item()
            seconds = time.monotonic() - began
            if total != ELEMENTS * size * (size + 1) / 2:
                raise RuntimeError(f"a sum over {size} nodes came out as {total / ELEMENTS}")
        return seconds
    finally:
        dist.destroy_process_group()


def free_address() -> str:
    """A port of this node that the others can reach."""
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def probe(address: str | None, storage: str) -> dict[str, Any]:
    """Join the cluster and look at it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=address or os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level="ERROR")
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])
    ids = [node["NodeID"] for node in nodes]

    def everywhere(function: Any, arguments: list[tuple[Any, ...]], gpus: int = 0) -> list[Any]:
        """The function's result on each node, or the sentence of its failure."""
        remote = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(function)
        tasks = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False)).remote(*each)
            for id, each in zip(ids, arguments, strict=False)
        ]
        done, late = ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS)
        for task in late:
            ray.cancel(task, force=True)
        return [_result(task) if task in done else f"no answer within {SECONDS:g} s" for task in tasks]

    marks = [uuid.uuid4().hex for _ in ids]
    looked = everywhere(look, [(storage, mark) for mark in marks])
    seen = [each if isinstance(each, dict) else {"error": each} for each in looked]
    for node, each in zip(nodes, seen, strict=True):
        each.update(address=node["NodeManagerAddress"], resources=node["Resources"])
        each.setdefault("host", node["NodeManagerHostname"])
    folder = next((each["storage"] for each in seen if each.get("storage")), "")
    wrote = [each["mark"] for each in seen if each.get("wrote") == "" and folder]
    if wrote:
        missing = everywhere(read, [(folder, wrote, False)] * len(ids))
        everywhere(read, [(folder, wrote, True)] * len(ids))
        for each, marks_missing in zip(seen, missing, strict=True):
            each["unseen"] = [other["host"] for other in seen if other.get("mark") in marks_missing]
    gpus = all(each["resources"].get("GPU", 0) >= 1 for each in seen)
    backend, size = ("nccl" if gpus else "gloo"), len(ids)
    url = everywhere(free_address, [()])[0]
    seconds = everywhere(all_reduce, [(backend, rank, size, url) for rank in range(size)], gpus=int(gpus))
    return {
        "nodes": seen, "resources": ray.cluster_resources(), "storage": folder,
        "all_reduce": {"backend": backend, "mib": ELEMENTS * 4 / 2**20, "seconds": seconds},
    }  # fmt: skip


def _open(storage: str) -> Any:
    filesystems = importlib.import_module("pyarrow.fs")
    return filesystems.FileSystem.from_uri(os.path.expanduser(storage or os.environ["STATTEN_STORAGE"]))


def _write(storage: str, mark: str) -> str:
    """Write the file of a node; returns what went wrong, or nothing."""
    if not storage and "STATTEN_STORAGE" not in os.environ:
        return ""
    try:
        filesystem, folder = _open(storage)
        with filesystem.open_output_stream(f"{folder}/.statten-doctor-{mark}") as file:
            file.write(mark.encode())
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _result(task: Any) -> Any:
    import ray

    try:
        return ray.get(task)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[-1].strip() if lines else type(error).__name__


if __name__ == "__main__":
    print(PREFIX + json.dumps(probe(*(sys.argv[1:] + ["", ""])[:2])))
