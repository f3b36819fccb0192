"""Checks of a cluster, by what `probe.py` finds on each of its nodes."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from statten.cluster.session import knock
from statten.cluster.token import token_file
from statten.doctor.checks import Broken, Missing
from statten.doctor.probe import PACKAGES, PREFIX
from statten.errors import UserError, user_path
from statten.machine import leads_here

# A cluster.


class ClusterProbe:
    """What `probe.py` finds in the cluster at an address; it runs once, and several checks read it.

    At a dashboard's URL it is sent as a job, so that it sees what jobs will see. Anywhere else it joins the cluster from a
    process of its own: Ray retries an address for ever, and a process can join one cluster only.
    """

    START = "start one with: ray start --head; and let this machine reach its ports"

    def __init__(self, address: str, storage: Path | None = None, timeout: float = 400):
        self.address, self.timeout = address, timeout
        named = storage or os.environ.get("STATTEN_STORAGE")
        self.storage = str(named) if named and "://" in str(named) else str(user_path(named).absolute()) if named else ""
        self._found: dict[str, Any] | Broken | None = None

    @property
    def remote(self) -> bool:
        """Whether the address is a dashboard's."""
        return self.address.startswith(("http://", "https://"))

    def found(self) -> dict[str, Any]:
        """The probe's document; raises Broken when there is none."""
        if self._found is None:
            try:
                self._found = self._by_job() if self.remote else self._by_joining()
            except Broken as failure:
                self._found = failure
        if isinstance(self._found, Broken):
            raise self._found
        return self._found

    def _by_job(self) -> dict[str, Any]:
        from statten.jobs.client import PROBE, JobClient, Submission  # Ray, which is itself among what is checked

        try:
            cluster = JobClient(self.address)
            name = f"{PROBE}{int(time.time())}"
            command = f"python probe.py '' {shlex.quote(self.storage)}"
            with tempfile.TemporaryDirectory(prefix="statten-") as folder:
                shutil.copy(_PROBE, folder)
                id = cluster.submit(Submission(name, command), Path(folder), lambda package: None)
            deadline = time.monotonic() + self.timeout
            while (job := cluster.job(id)).live:
                if time.monotonic() > deadline:
                    cluster.stop(id)
                    raise Broken(
                        f"{self.address}: a small job did not end within {self.timeout:g} s", f"look at: statten logs {id}"
                    )
                time.sleep(0.5)
            text = cluster.logs(id)
        except UserError as error:
            raise Broken(str(error), "") from None
        return self._document(text, f"job {job.id} {job.status.lower()}")

    def _by_joining(self) -> dict[str, Any]:
        _knock(self.address, self.START)
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        if "RAY_AUTH_TOKEN" in os.environ or token_file().is_file():
            environment.setdefault("RAY_AUTH_MODE", "token")
        command = [sys.executable, str(_PROBE), self.address, self.storage]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout, env=environment, check=False)
        except subprocess.TimeoutExpired:
            raise Broken(f"{self.address} did not answer within {self.timeout:g} s", self.START) from None
        return self._document(shown.stdout + shown.stderr, f"{self.address} cannot be joined")

    def _document(self, text: str, failed: str) -> dict[str, Any]:
        lines = [line for line in text.splitlines() if line.strip()]
        for line in reversed(lines):
            if line.startswith(PREFIX):
                return json.loads(line.removeprefix(PREFIX))
        reason = lines[-1] if lines else "no reason given"
        activate = "start Ray from the environment that has statten, activated, so that `python` is its own"
        raise Broken(f"{failed}: {reason}", activate if "Module" in reason or "not found" in reason else self.START)


_PROBE = Path(__file__).with_name("probe.py")


def cluster_checks(probe: ClusterProbe) -> list[tuple[str, bool, Callable[[], str]]]:
    """The checks of a cluster: name, whether it must be ok, check."""
    return [
        ("cluster", True, lambda: check_cluster(probe)),
        *([("cluster's token", True, lambda: check_cluster_token(probe.address))] if probe.remote else []),
        ("cluster's versions", True, lambda: check_cluster_versions(probe)),
        ("cluster's gpus", False, lambda: check_cluster_gpus(probe)),
        ("cluster's storage", True, lambda: check_cluster_storage(probe)),
        ("all-reduce", True, lambda: check_all_reduce(probe)),
    ]


def check_cluster(probe: ClusterProbe) -> str:
    """A Ray cluster answers, takes a job or lets us join, and tells its resources; every node of it works."""
    found = probe.found()
    silent = [f"{node['host']} ({node['error']})" for node in found["nodes"] if "error" in node]
    if silent:
        raise Broken(f"{probe.address}: no task runs on {', '.join(silent)}", "look at that machine's ray logs, and restart it")
    total = found["resources"]
    hosts = ", ".join(sorted({node["host"] for node in found["nodes"]}))
    return (
        f"{probe.address}: {len(found['nodes'])} nodes on {hosts}, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    )


def check_cluster_token(address: str) -> str:
    """Whoever has no token is sent away."""
    proxies = [urllib.request.ProxyHandler({})] if leads_here(address) else []
    try:
        with urllib.request.build_opener(*proxies).open(f"{address.rstrip('/')}/api/version", timeout=10) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    if status != 401:
        raise Broken(
            f"{address} asks for no token: whoever reaches it can run anything there",
            "statten doctor --make-token, then start Ray with RAY_AUTH_MODE=token",
        )
    return "is asked for, and ours is taken"


def check_cluster_versions(probe: ClusterProbe) -> str:
    """Python, Ray, torch and statten are the same on all nodes and here."""
    here = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    wrong = []
    for node in probe.found()["nodes"]:
        there = {"python": node.get("python"), **node.get("versions", {})}
        differ = [name for name in here if there.get(name) != here[name]]
        wrong += [f"{name} {there.get(name) or 'is missing'} on {node['host']}" for name in differ]
    ours = ", ".join(f"{name} {version}" for name, version in here.items())
    if wrong:
        fix = "install requirements.lock on every machine, or take one image"
        raise Broken(f"{', '.join(sorted(set(wrong)))}, but here {ours}", fix)
    return f"as here: {ours}"


def check_cluster_gpus(probe: ClusterProbe) -> str:
    """GPUs of the nodes."""
    nodes = probe.found()["nodes"]
    found = [f"{node['resources']['GPU']:g} on {node['host']}" for node in nodes if node["resources"].get("GPU")]
    if not found:
        raise Missing("no node has one; everything runs on CPUs", "ray start --num-gpus=N, if Ray does not see them by itself")
    return ", ".join(found)


def check_cluster_storage(probe: ClusterProbe) -> str:
    """What one node writes into the storage, every other one sees."""
    found = probe.found()
    folder = found["storage"]
    share = "mount the same folder on all machines, or take s3:// or gs://"
    if not folder:
        raise Missing("no storage is named, and the cluster sets no $STATTEN_STORAGE", "name one: --storage /shared/runs")
    failed = [f"{node['host']}: {node['wrote']}" for node in found["nodes"] if node.get("wrote")]
    if failed:
        raise Broken(f"{folder} cannot be written on {'; '.join(failed)}", share)
    blind = [f"{node['host']} sees nothing of {', '.join(node['unseen'])}" for node in found["nodes"] if node.get("unseen")]
    if blind:
        raise Broken(f"{folder} is not shared: {'; '.join(blind)}", share)
    return f"{folder}: {len(found['nodes'])} nodes see each other's files"


def check_all_reduce(probe: ClusterProbe) -> str:
    """The nodes can sum a vector together, as training does after each step."""
    found = probe.found()["all_reduce"]
    failed = [str(each) for each in found["seconds"] if not isinstance(each, float)]
    if failed:
        raise Broken(
            f"{found['backend']} between {len(found['seconds'])} nodes: {failed[0]}",
            "open all ports between the machines; with several networks set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        )
    milliseconds = 1e3 * max(found["seconds"])
    return f"{found['backend']}, {found['mib']:g} MiB over {len(found['seconds'])} nodes in {milliseconds:.1f} ms"


def _knock(address: str, fix: str) -> None:
    """Fail early, and clearly, where nothing listens."""
    if address in ("auto", "local"):
        return
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise Broken(f"{address} is no address", "write host:port, ray://host:port or auto")
    try:
        knock(address, 5)
    except OSError as error:
        raise Broken(f"nothing answers at {address}: {error.strerror or error}", fix) from error
