"""Jobs on two Ray nodes of this machine with a token: submit, follow, lose the connection, stop, go on, promote, evaluate."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest
from processes import MARK, marked

from statten.cluster.session import forget_token
from statten.cluster.token import make_token
from statten.doctor import checks as doctor
from statten.doctor import cluster as doctor_cluster
from statten.doctor import diagnose
from statten.errors import UserError
from statten.jobs.client import JobClient
from statten.search.sweep import Sweep
from statten.storage.run import Run

ROOT = Path(__file__).parents[2]
SPACE = """\
model.depth:      {choices: [1]}
model.embed_dim:  {choices: [16, 32, 48, 64]}
"""
SWEEP = """\
command: tune
recipe: digits
space: space.yaml
name: sweep
storage: STORAGE
trials: 3
overrides:
  {data.fraction: 0.5, train.epochs: 2, train.warmup_epochs: 0, search.scheduler: none, search.firing_range: null,
   search.max_concurrent: 1}
resources: {device: cpu, neuron_backend: torch}
runtime: {environment: {OMP_NUM_THREADS: "1"}}
"""
PROMOTE = """\
command: promote
target: sweep
name: promoted
storage: STORAGE
overrides: {train.epochs: 1}
resources: {workers: 1, device: cpu, cpus_per_worker: 1}
"""


# What Slurm sets in every batch job, Kubernetes in every pod, and others where they please; no script may take it for its own.
FOREIGN = {
    "ENVIRONMENT": "BATCH", "PORT": "tcp://10.0.0.1:443", "DASHBOARD_PORT": "tcp://10.0.0.2:80", "CPUS": "all", "GPUS": "none",
    "PYTHON": "/nowhere/python", "JOB": "/nowhere", "NODES": "none",
}  # fmt: skip


class LocalCluster:
    """`cluster/local.sh` with two nodes, in a process group of its own."""

    def __init__(self, log: Path):
        self.log, self.port = log, 0
        self.start()

    def start(self) -> None:
        """Start it; the second time at the same port."""
        self.mark, self.folder = uuid.uuid4().hex, tempfile.mkdtemp(prefix="ray")
        settings = {"CPUS": "2", "PORT": "0", "DASHBOARD_PORT": str(self.port), "FOLDER": self.folder, "PYTHON": sys.executable}
        named = {f"LOCAL_SH_{name}": value for name, value in settings.items()}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", str(ROOT / "cluster" / "local.sh"), "2"], stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **named, **FOREIGN, MARK: self.mark},
            )  # fmt: skip
        deadline = time.monotonic() + 120
        try:
            while "submit to " not in self.log.read_text():
                assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)
        except BaseException:  # an interrupted test leaves nothing either
            self.kill()
            raise
        self.url = self.log.read_text().partition("submit to ")[2].partition(",")[0]
        self.port = int(self.url.rpartition(":")[2])
        assert (Path.home() / ".ray" / "dashboard_url").read_text().strip() == self.url, "submit finds it by itself"
        self.address = self.log.read_text().partition("join at ")[2].partition(";")[0]

    def kill(self) -> list[int]:
        """Take the power away; returns what was still there."""
        left = there = marked(self.mark)
        while there:  # some may have started others meanwhile
            for pid in there:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            there = marked(self.mark)
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def stop(self) -> list[int]:
        """Stop it as Ctrl-C does; returns what is left of it."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        deadline = time.monotonic() + 30
        while (left := marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a token that only its owner reads, and no address from outside."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background, and inherited
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        make_token()
        yield folder
    forget_token()


@pytest.fixture(scope="module")
def cluster(home):
    local = LocalCluster(home / "local.log")
    yield local
    local.stop()
    assert not local.kill(), "processes of the cluster outlived it"
    assert not (home / ".ray" / "dashboard_url").exists()


class Relay:
    """A port that leads to another, until it is cut; what a network does to a follower."""

    def __init__(self, url: str):
        self.target, self.open = int(url.rpartition(":")[2]), True
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self.server.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", self.target if self.open else 0))
                except OSError:
                    here.close()
                    continue
                self.pairs += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self.open = False
        for end in self.pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.pairs.clear()


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory with job files, where commands are typed; the storage is beside it."""
    folder, storage = tmp_path / "work", tmp_path / "runs"
    folder.mkdir()
    storage.mkdir()
    for name, text in (("space", SPACE), ("sweep", SWEEP), ("promote", PROMOTE)):
        (folder / f"{name}.yaml").write_text(text.replace("STORAGE", str(storage)))
    monkeypatch.chdir(folder)
    return folder


def until(condition, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.fixture
def typed(typed, cluster):
    """Type a command for the cluster that ends by itself, in this process; returns its exit code and what it printed."""

    def type_(command: str, *arguments: object) -> tuple[int, str]:
        code, out, err = typed(command, "--address", cluster.url, *arguments)
        return code, out + err

    return type_


@pytest.mark.slow
def test_jobs_from_a_sweep_to_an_evaluation(statten, typed, cluster, work, tmp_path):
    here, runs = JobClient(cluster.url), tmp_path / "runs"
    code, sent = typed("submit", "sweep.yaml")
    assert code == 0 and "working directory: 3 files of" in sent and " B packed" in sent and "submitted sweep-1" in sent
    relay = Relay(cluster.url)
    follower = statten("logs", "sweep", "-f", "--address", relay.url)
    second = statten("logs", "sweep-1", "-f", "--address", cluster.url)
    code, again = typed("submit", "sweep.yaml")
    assert code == 2 and "already, as sweep-1" in again and "statten logs sweep-1 -f" in again

    until(lambda: "Running entrypoint" in follower.text and "Running entrypoint" in second.text)
    relay.cut()
    second.process.send_signal(signal.SIGINT)
    assert f"detached; sweep-1 goes on. Come back with: statten logs sweep-1 --address {cluster.url} -f" in second.finish()
    until(lambda: "lost, trying again" in follower.text)
    relay.open = True
    until(lambda: "connected again" in follower.text)
    assert here.job("sweep-1").live, "whoever stops looking stops nothing"
    until(lambda: "trial 0" in here.logs("sweep-1"))
    assert typed("stop", "sweep") == (0, "sweep-1  STOPPED\n")
    seen = follower.finish()
    assert seen.count("lost, trying again") == seen.count("connected again") == 1 and "sweep-1 has ended: STOPPED" in seen
    said = ("lost, trying again", "connected again", "has ended: STOPPED")  # by the follower itself
    lines = [line for line in seen.splitlines(keepends=True) if not any(words in line for words in said)]
    assert "".join(lines) == here.logs("sweep-1"), "every character once"
    assert typed("wait", "sweep") == (1, "sweep-1  STOPPED\n")

    ended = {t.number for t, _ in Sweep.open(runs / "sweep").rows() if t.state.is_finished()}
    before = {n: (runs / f"sweep/trials/{n:04d}/result.json").read_text() for n in ended}
    assert 0 in ended and len(ended) < 3
    attempt = (runs / "sweep" / "attempt").read_text()
    assert typed("submit", "sweep.yaml")[0] == 0
    until(lambda: (runs / "sweep" / "attempt").read_text() != attempt)
    cluster.kill()  # all machines lose their power while it goes on; the same file, sent to a new head, goes on again
    cluster.start()
    assert typed("submit", "sweep.yaml")[0] == 0
    assert typed("wait", "sweep") == (0, "sweep-1  SUCCEEDED\n")
    assert [t.state.name for t, _ in Sweep.open(runs / "sweep").rows()] == ["COMPLETE"] * 3
    assert all((runs / f"sweep/trials/{n:04d}/result.json").read_text() == text for n, text in before.items())

    assert typed("submit", "promote.yaml")[0] == 0
    assert typed("submit", "--", "evaluate", "nothing", "--storage", runs)[0] == 0
    mistaken = here.jobs()[-1].id
    assert typed("wait", mistaken) == (2, f"{mistaken}  FAILED, exit code 2\n")
    assert "nothing: no such run or sweep" in here.logs(mistaken)
    assert typed("wait", "promoted") == (0, "promoted-1  SUCCEEDED\n")
    assert Run.open(runs / "promoted").state == "finished"
    assert typed("submit", "--", "evaluate", "promoted", "--no-rates", "--storage", runs)[0] == 0
    assert typed("wait", here.jobs()[-1].id)[0] == 0
    assert json.loads((runs / "promoted" / "evaluation.json").read_text())["samples"] == 359

    listed = json.loads(typed("jobs", "--json")[1])
    assert [job["status"] for job in listed] == ["SUCCEEDED", "SUCCEEDED", "FAILED", "SUCCEEDED"]
    token = (Path(os.environ["HOME"]) / ".ray" / "auth_token").read_text()
    assert token not in json.dumps(listed) and all(token not in here.logs(job["id"]) for job in listed)
    code, text = typed("status", "no-such-job")
    assert code == 2 and "no-such-job: no such job" in text


@pytest.mark.slow
def test_doctor_looks_at_every_node(cluster, tmp_path, monkeypatch):
    """Through a job: the token, versions, a storage that both nodes see, a sum over both."""
    probe = doctor_cluster.ClusterProbe(cluster.url, tmp_path)
    checks = {name: diagnose.run_check(name, check, required) for name, required, check in doctor_cluster.cluster_checks(probe)}
    assert {name for name, check in checks.items() if check.state != "ok"} == {"cluster's gpus"}, checks
    assert "2 nodes on" in checks["cluster"].detail and "4 CPUs, 0 GPUs" in checks["cluster"].detail
    assert checks["cluster's storage"].detail == f"{tmp_path}: 2 nodes see each other's files"
    assert "gloo, 4 MiB over 2 nodes" in checks["all-reduce"].detail
    assert not list(tmp_path.iterdir()), "nothing stays"

    found = probe.found()  # the same cluster, were something wrong with it
    first, second = found["nodes"]
    with pytest.raises(doctor.Broken, match=r"is not shared: .* sees nothing of"):
        second["unseen"] = [first["host"]]
        doctor_cluster.check_cluster_storage(probe)
    with pytest.raises(doctor.Broken, match=r"torch 2\.0\.0 on \S+, but here python"):
        second["versions"]["torch"] = "2.0.0"
        doctor_cluster.check_cluster_versions(probe)
    with pytest.raises(doctor.Broken, match="gloo between 2 nodes: no answer within"):
        found["all_reduce"]["seconds"][1] = "no answer within 90 s"
        doctor_cluster.check_all_reduce(probe)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "no-token-of-this-cluster")
    with pytest.raises(doctor.Broken, match="refuses the token of RAY_AUTH_TOKEN"):
        doctor_cluster.check_cluster(doctor_cluster.ClusterProbe(cluster.url))


def test_tokens(cluster, monkeypatch, tmp_path):
    """A missing token, a wrong one and one that others can read are each one sentence; none of them is shown."""
    assert JobClient(cluster.url).version().startswith("2.60")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "no-token-of-this-cluster")
    with pytest.raises(UserError, match="refuses the token of RAY_AUTH_TOKEN; take") as caught:
        JobClient(cluster.url)
    assert "no-token-of" not in str(caught.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError, match=r"asks for a token, and there is none here; copy ~/.ray/auth_token"):
        JobClient(cluster.url)
    (tmp_path / "token").write_text("0" * 64)
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(UserError, match=r"its mode is 644; type: chmod 600 .*token"):
        JobClient(cluster.url)
    (tmp_path / "token").chmod(0o600)
    with pytest.raises(UserError, match=f"refuses the token of {tmp_path}/token"):
        JobClient(cluster.url)
    join = f"from statten.cluster.session import ray_cluster as join\nwith join({cluster.address!r}): pass"
    quick = {**os.environ, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    done = subprocess.run([sys.executable, "-c", join], capture_output=True, text=True, env=quick, check=False)
    assert f"scale.address: {cluster.address} refuses the token of {tmp_path}/token; copy" in done.stderr.splitlines()[-1]
