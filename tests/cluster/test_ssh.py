"""cluster/ssh.yaml on three machines with sshd and homes of their own, by the commands that it opens with."""

import shutil

import pytest
from machines import ROOT, SSH, Machine, Ssh, wait_for

from statten.storage.run import Run

SMALL = "--set model.depth=1 --set model.embed_dim=32 --set train.epochs=1 --set train.warmup_epochs=0 --set data.fraction=0.2"
SMALL += " --set scale.workers=2 --set scale.cpus_per_worker=1 --set scale.placement=spread --set scale.neuron_backend=torch"

# Three environments would take minutes: on all machines it is that of the tests, up to date by its stamp.
ENVIRONMENT = f"""
mkdir -p ~/statten/.venv && cd ~/statten/.venv && ln -s {ROOT}/.venv/* . && cd {ROOT} &&
echo "$(cat pyproject.toml requirements.lock | cksum) $HOME/statten" >~/statten/.venv/.stamp
"""


@pytest.fixture(scope="module")
def site(machines):
    """A laptop with a clone of the repository, and three machines on which there is Python, and a .venv of `make setup`."""
    made = machines("laptop", "head", "w1", "w2", programs=SSH)
    Ssh(made)
    clone = made["laptop"].home / "statten"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", "site"))
    for machine in made:
        machine.bash(ENVIRONMENT)
    file = clone / "cluster" / "ssh.yaml"
    text = file.read_text()
    for find, put in {
        "10.0.0.1 ": f"{made['head'].address} ", "[10.0.0.2, 10.0.0.3]": f"[{made['w1'].address}, {made['w2'].address}]",
        "ubuntu": "root", "/shared": str(made.shared),
    }.items():  # fmt: skip
        assert find in text
        text = text.replace(find, put)
    file.write_text(text)
    made.cwd = clone
    made.file = file
    return made


def typed(site, command: str, seconds: float = 300) -> str:
    """What a command of the guide prints on the laptop, on a terminal, where `y` answers its questions."""
    assert command in (ROOT / "cluster" / "ssh.yaml").read_text().replace("/shared", str(site.shared)), "word for word"
    return site["laptop"].bash(f"printf 'y\\ny\\n' | script -qefc '{command}' /dev/null", seconds=seconds)


def started(machine: Machine) -> set[str]:
    """Ray's main processes on a machine."""
    return set(machine.run("ps", "-C", "raylet,gcs_server", "-o", "pid=", check=False).split())


@pytest.mark.slow
def test_the_commands_of_the_file(site):
    laptop, nodes = site["laptop"], [site[name] for name in ("head", "w1", "w2")]
    typed(site, "statten doctor --make-token")
    typed(site, "ray up cluster/ssh.yaml")
    laptop.start("ray", "dashboard", "cluster/ssh.yaml")
    storage, address = site.shared / "runs", "--address http://127.0.0.1:8265"
    wait_for(lambda: all(map(started, nodes)), "all machines in the cluster", 240)
    wait_for(
        lambda: "200" in laptop.bash("curl -so /dev/null -w '%{http_code}' http://127.0.0.1:8265", check=False), "a tunnel"
    )
    storage.mkdir()
    found = laptop.bash(f"statten doctor {address} --storage {storage}", check=False, seconds=240)
    assert "8265: 3 nodes on head, w1, w2, " in found and "3 nodes see each other's files" in found, found
    assert "gloo, 4 MiB over 3 nodes" in found
    assert "statten-doctor" not in laptop.bash(f"statten jobs {address}")
    laptop.bash(f"statten submit jobs/digits.yaml {address} --storage {storage} {SMALL}")
    laptop.bash(f"statten wait digits {address}", seconds=300)
    run = Run.open(storage / "digits")
    assert run.state == "finished"
    assert "digits-1" in laptop.bash(f"RAY_AUTH_MODE=token ray job list {address}")

    before = started(nodes[0])
    site.file.write_text(site.file.read_text().replace("/runs &&", "/others &&").replace("/runs RAY", "/others RAY"))
    typed(site, "ray up cluster/ssh.yaml")
    assert started(nodes[0]) and not started(nodes[0]) & before, "started anew"
    typed(site, "ray down cluster/ssh.yaml")
    wait_for(lambda: not any(map(started, nodes)), "the end of Ray on all machines", 120)
