"""The doctor against real findings: broken modules, files in the way, ports where nobody listens."""

import json
import os
import socket
import subprocess
import sys
from importlib import metadata
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from statten.cluster import session
from statten.doctor import checks as doctor
from statten.doctor import cluster, diagnose
from statten.doctor.checks import Broken, Check, Missing

NAMES = {
    "python", "statten", "versions", "torch", "torchvision", "timm", "ray", "optuna", "tensorboard", "gpu",
    "cupy", "compiler", "cpu", "memory", "instructions", "storage", "ray's folder", "shared memory",
}  # fmt: skip


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    return diagnose.diagnose(tmp_path_factory.mktemp("storage"))


def shown(checks: list[Check]) -> str:
    console = Console(file=StringIO(), width=400)
    console.print(diagnose.render(checks))
    return console.file.getvalue()


def statten_doctor(*args, **environment):
    command = [sys.executable, "-m", "statten.cli", "doctor", "--json", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    return done, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_this_machine_is_fit(checks):
    """It runs these tests, so everything that is required is here."""
    assert {check.name for check in checks} == NAMES
    assert diagnose.healthy(checks), shown(checks)
    assert all(check.detail for check in checks)


def test_every_finding_says_what_to_do(checks):
    for check in checks:
        assert bool(check.fix) == (check.state != "ok"), check


def test_versions_are_the_installed_ones(checks):
    found = {check.name: check.detail for check in checks}
    for name in ("timm", "ray", "optuna", "torchvision"):
        assert found[name] == metadata.version(name)
    assert found["torch"].startswith(metadata.version("torch"))


def test_a_broken_package_hides_nothing(tmp_path):
    """optuna and timm are shadowed by modules that fail; all other checks still tell what they found."""
    (tmp_path / "optuna.py").write_text("raise RuntimeError('half an update')")
    (tmp_path / "timm.py").write_text("import no_such_library")
    done, found = statten_doctor("--storage", tmp_path / "runs", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert set(found) == NAMES
    for name, reason in (("optuna", "half an update"), ("timm", "no_such_library")):
        assert found[name]["state"] == "broken"
        assert reason in found[name]["detail"]
        assert f"'{name}" in found[name]["fix"]
    assert {name for name, check in found.items() if check["required"] and check["state"] != "ok"} == {"optuna", "timm"}
    assert "Traceback" not in done.stderr


def test_a_broken_torch_is_a_finding(tmp_path):
    """Four checks need torch; each says so on its own, and the machine is still described."""
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    done, found = statten_doctor("--storage", tmp_path / "runs", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "libcudart.so" in found["torch"]["detail"]
    assert found["storage"]["state"] == found["memory"]["state"] == found["optuna"]["state"] == "ok"


def test_a_missing_package_is_named():
    with pytest.raises(Missing, match="not installed"):
        doctor.package_check("no_such_package")()


def test_whatever_a_check_raises_is_its_result():
    def check() -> str:
        raise KeyError("flags")

    found = diagnose.run_check("instructions", check, required=False)
    assert (found.state, found.detail) == ("broken", "KeyError: 'flags'")
    assert diagnose.healthy([found])


@pytest.mark.parametrize(
    ("state", "required", "fit"),
    [("ok", True, True), ("missing", True, False), ("broken", True, False), ("missing", False, True), ("broken", False, True)],
)
def test_only_required_checks_make_a_machine_unfit(state, required, fit):
    checks = [Check("python", "ok", "3.11"), Check("it", state, "detail", "type this", required)]
    assert diagnose.healthy(checks) is fit
    assert diagnose.to_json(checks)["healthy"] is fit
    assert ("Not ready: it." in shown(checks)) is not fit


def test_versions_out_of_range():
    installed = metadata.version("torch")
    wrong = doctor.out_of_range(["torch==1.0.*", "no-such-package>=2", "torch", f"torch=={installed}", "ray[tune]>=1"])
    assert wrong == {"torch==1.0.*": ("torch", installed), "no-such-package>=2": ("no-such-package", None)}


def test_brackets_in_findings_are_printed_as_they_are():
    assert "-> pip install 'ray[train]'" in shown([Check("ray", "missing", "not installed", "pip install 'ray[train]'")])


def test_storage_that_is_there_or_would_be_made(tmp_path):
    assert str(tmp_path) in doctor.check_storage(tmp_path)
    new = tmp_path / "a" / "b"
    assert "will be made" in doctor.check_storage(new)
    assert not new.parent.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "runs", "runs/deeper"])
def test_storage_at_or_below_a_file(tmp_path, below):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(Broken, match="is a file") as caught:
        doctor.check_storage(file / below)
    assert "--storage" in caught.value.fix


@pytest.mark.parametrize("check", [doctor.check_storage, doctor.check_ray_folder])
def test_a_folder_that_refuses_files(check):
    """/proc refuses files to everyone, root included."""
    with pytest.raises(Broken, match="cannot be written"):
        check(Path("/proc/self"))


def test_rays_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert session.ray_temp() == tmp_path
    with pytest.raises(Broken, match="cannot be written"):
        doctor.check_ray_folder(tmp_path / "missing")
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    with pytest.raises(Broken, match="too long a path"):
        doctor.check_ray_folder(deep)


def test_cores_are_those_of_this_process():
    """A process that is bound to one core sees one."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from statten.machine import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) <= 1


@pytest.mark.parametrize(
    ("address", "message"),
    [("nonsense", "is no address"), ("host:", "is no address"), ("6379", "is no address"),
     ("127.0.0.1:{port}", "nothing answers"),
     ("ray://127.0.0.1:{port}", "nothing answers"), ("no-such-host.invalid:6379", "nothing answers")],
)  # fmt: skip
def test_a_cluster_that_is_not_there(address, message):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, but nobody listens
        with pytest.raises(Broken, match=message):
            cluster.check_cluster(cluster.ClusterProbe(address.format(port=probe.getsockname()[1])))


def test_a_port_that_is_no_cluster():
    """Something listens and never answers: the check ends on its own."""
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Broken, match="did not answer within 4 s"):
        cluster.check_cluster(cluster.ClusterProbe(f"127.0.0.1:{server.getsockname()[1]}", timeout=4))


def test_the_package_for_cupy_follows_torch():
    wanted = next(r.partition(";")[0].strip() for r in metadata.requires("statten") if r.startswith("cupy"))
    assert doctor._cupy_for("13.0") == wanted
    assert doctor._cupy_for("12.8") == "cupy-cuda12x"
