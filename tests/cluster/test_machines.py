"""The machines themselves: names, links and folders of their own, faults that do what they say, and nothing left of them."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from machines import Machines, missing, wait_for

LISTEN = """
import socket
server = socket.create_server(("0.0.0.0", 9000))
while True:
    there, _ = server.accept()
    there.settimeout(5)
    with there:
        try:
            there.sendall(b"here " + there.recv(10))
        except OSError:
            pass
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000), timeout=1) as there:
    there.sendall(b"are you?")
    print(there.recv(20).decode())
"""


@pytest.fixture(scope="module")
def two(machines):
    made = machines("a", "b")
    made["b"].start("python", "-c", LISTEN)
    wait_for(lambda: heard(made), "b to listen", 20)
    return made


def heard(two, address: str = "b") -> bool:
    return "here are you?" in two["a"].run("python", "-c", ASK, address, check=False)


def test_a_machine_has_a_name_a_home_and_a_tmp_of_its_own_and_shares_one_folder(two):
    a, b = two["a"], two["b"]
    assert a.run("hostname").strip() == "a" and b.bash("hostname").strip() == "b"
    a.bash(f"touch ~/mine /tmp/mine /dev/shm/mine {two.shared}/ours")
    assert b.bash(f"ls ~ /tmp /dev/shm {two.shared}").count("mine") == 0 and "ours" in b.run("ls", two.shared)
    assert not Path("/tmp/mine").exists() and not (Path.home() / "mine").exists()
    assert "default" not in a.run("ip", "route") and a.bash("cat /etc/resolv.conf") == ""
    assert "sleep 1000" in a.run("ps", "ax") and str(os.getpid()) not in a.run("ps", "ax", "-o", "pid=").split()


@pytest.mark.parametrize("fault", ["cut", "mute", "deafen"])
def test_a_fault_of_a_link_can_be_mended(two, fault):
    getattr(two["b"], fault)()
    assert not heard(two)
    two["b"].mend()
    wait_for(lambda: heard(two), "the link", 20)


def test_a_slow_link_is_slow(two):
    two["b"].slow(0.2, 0.0)
    began = time.monotonic()
    assert heard(two, two["b"].address) and time.monotonic() - began > 0.8, "there and back, twice"
    two["b"].mend()
    wait_for(lambda: heard(two), "the link", 20)


def test_a_frozen_machine_goes_on_where_it_was(two):
    two["b"].freeze()
    assert not heard(two)
    two["b"].thaw()
    wait_for(lambda: heard(two), "the machine", 20)


def test_without_power_nothing_runs_and_the_disk_stays(two):
    a = two["a"]
    command = a.start("sleep", "600")
    a.bash("echo kept >/tmp/disk")
    a.power_off()
    assert command.wait(60) and not Path(f"/proc/{a.space.pid}").exists()
    a.boot()
    assert a.run("cat", "/tmp/disk") == "kept\n" and "sleep 600" not in a.run("ps", "ax")


def test_nothing_of_them_stays():
    if reason := missing():
        pytest.skip(reason)
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    with Machines("a") as made:
        command = made["a"].start("sleep", "600")
        pids = [made.building.pid, made["a"].space.pid, *made["a"].pids()]
        made["a"].freeze()
    assert command.wait(60) and not made.folder.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout == links
