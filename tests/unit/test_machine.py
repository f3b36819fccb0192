"""What a process may use, by files as the kernel shows them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from statten.doctor import checks
from statten.machine import control_groups, usable_cores, usable_memory

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
HERE = len(os.sched_getaffinity(0))


def system(folder: Path, membership: str, **files: str) -> tuple[Path, Path]:
    """A tree of control groups and a process in it; `a__memory.max` is the file memory.max of group a."""
    for name, text in files.items():
        path = folder / "cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (folder / "self").write_text(membership + "\n")
    return folder / "cgroup", folder / "self"


@pytest.mark.parametrize(
    ("membership", "files", "memory"),
    [
        ("0::/", {"memory.max": "1000000"}, 1_000_000),  # a container of version 2
        ("0::/", {"memory.max": "max"}, PHYSICAL),
        ("0::/job/step", {"job__memory.max": "3000", "job__step__memory.max": "max"}, 3000),  # the outer one bounds
        ("0::/job/step", {"job__memory.max": "3000", "job__step__memory.max": "2000"}, 2000),
        ("5:memory:/docker/1", {"memory__memory.limit_in_bytes": "7000"}, 7000),  # version 1, seen from inside
        ("5:memory:/j", {"memory__memory.limit_in_bytes": str(2**63 - 4096), "memory__j__memory.limit_in_bytes": "7"}, 7),
        ("5:cpu,cpuacct:/j\n0::/", {"memory__memory.limit_in_bytes": "7000"}, PHYSICAL),
    ],
)
def test_memory_is_the_containers(membership, files, memory, tmp_path):
    assert usable_memory(*system(tmp_path, membership, **files)) == memory


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/", {"cpu.max": "max 100000"}, HERE),
        ("0::/job", {"cpu.max": "25000 100000", "job__cpu.max": "50000 100000"}, 0.25),
        ("4:cpu,cpuacct:/", {"cpu__cpu.cfs_quota_us": "10000", "cpu__cpu.cfs_period_us": "100000"}, 0.1),
        ("4:cpu,cpuacct:/", {"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, HERE),
    ],
)
def test_cores_are_the_containers(membership, files, cores, tmp_path):
    assert usable_cores(*system(tmp_path, membership, **files)) == pytest.approx(cores)


def test_no_control_groups_at_all(tmp_path):
    assert list(control_groups("memory", tmp_path, tmp_path / "none")) == []
    assert (usable_memory(tmp_path, tmp_path / "none"), usable_cores(tmp_path, tmp_path / "none")) == (PHYSICAL, HERE)


def test_doctor_and_native_neurons_mean_the_same_compiler(monkeypatch):
    """A $CXX that names nothing is refused by the neurons: doctor must not call another compiler fine."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(checks.Broken, match="\\$CXX names no-such-compiler, which is not on the PATH"):
        checks.check_compiler()


def test_plans_and_ray_count_the_cores_of_this_process():
    """Bound to one core, a process has one, whatever the machine has."""
    code = """if True:
        import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from statten.cluster.nodes import survey
        from statten.cluster.session import ray_cluster
        from statten.config import load_config
        from statten.errors import UserError
        from statten.training.preflight import preflight
        try:
            preflight(load_config("digits", {"scale.workers": 2, "scale.cpus_per_worker": 1}))
        except UserError as error:
            print(error)
        with ray_cluster(None) as resources:
            print(survey(None)[0].cpus, resources["CPU"])
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "2 workers of 1 cores need 2 cores, but there are 1" in done.stdout and done.stdout.splitlines()[-1] == "1 1.0"
