"""Several machines on one: each has an address, a host name, a link, a home, a /tmp and processes of its own.

    with Machines("a", "b") as machines:
        machines["a"].run("ping", "-c1", "b")
        machines["b"].cut()

They stand in a "building": a network namespace with a bridge, which nothing leads out of. The building, and with it every
process of every machine, ends when this process does, even by kill -9. The system's files, the repository and `shared` are seen
by all. No machine has a route to the outside or a name server; names are in /etc/hosts.

Needs root on Linux, with iproute2 and util-linux; a Slurm also slurm-wlm and munge, machines with SSH also openssh-server.
`missing` says what is not there.
"""

import contextlib
import ctypes
import functools
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NETWORK = "10.77.0"
PACKAGES = {
    "ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux",
    "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge", "sshd": "openssh-server",
    "rsync": "rsync", "ssh": "openssh-client",
}  # fmt: skip
BASE, SLURM, SSH = (
    ("ip", "tc", "nsenter", "setpriv", "unshare"),
    ("slurmctld", "slurmd", "sbatch", "munged"),
    ("sshd", "ssh", "rsync"),
)

IDLE = "\necho ready; trap exit TERM; while :; do sleep 1000 & wait $!; done"
"""The end of a first process: it stays, and takes the orphans."""


def missing(*programs: str) -> str | None:
    """Why machines cannot be made here, or None where they can."""
    if os.getuid():
        return "several machines on one need root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if lacking := sorted({PACKAGES[name] for name in (*BASE, *programs) if not shutil.which(name, path=path)}):
        return f"several machines on one need Debian's packages: apt-get install --no-install-recommends {' '.join(lacking)}"
    made = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "b0", "type", "bridge"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    return f"namespaces or bridges cannot be made here: {made.stderr.strip()}" if made.returncode else None


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120, every: float = 0.1) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(every)
    return value


def _dies_with_us() -> None:
    """Called in a child before its program starts: SIGKILL to it when this process ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class _Space:
    """A first process with namespaces of its own."""

    def __init__(self, enter: list[str], flags: str, script: str, log: Path):
        self.log = log
        command = [*enter, "unshare", *flags.split(), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [*command, "bash", "-euc", script + IDLE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                preexec_fn=_dies_with_us, start_new_session=True,
            )  # fmt: skip
        self.pid = 0
        try:
            # As nsenter and unshare fork, it is the last of the line.
            self.pid = wait_for(lambda: self._first(2 if enter else 1), f"a machine to start, see {log}", 20, 0.01)
        except BaseException:
            self.end()
            raise

    def _first(self, depth: int) -> int | None:
        line = [self._process.pid]
        for _ in range(depth):
            line += _children(line[-1])[:1]
        return line[-1] if len(line) == depth + 1 else None

    def ready(self) -> None:
        """Wait until its script is through."""
        assert self._process.stdout
        said = self._process.stdout.readline().decode().strip()
        if said != "ready":
            raise RuntimeError(f"a machine did not start: {self.log.read_text()}")

    def enter(self) -> list[str]:
        """What to put before a command that is to run inside."""
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--"]

    def end(self) -> None:
        """End its first process, and with it all others; returns when none is left."""
        inside = pids_of(self.pid) if self.pid else []
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pid in inside:
            wait_for(functools.partial(_gone, pid), f"the end of process {pid}", 30, 0.02)


def pids_of(first: int) -> list[int]:
    """All processes whose process namespace is the first one's, or below it: Docker's idea of what is on a machine."""
    found, line = [], [first]
    while line:
        found.append(pid := line.pop())
        line += _children(pid)
    with contextlib.suppress(OSError):  # and those that somebody put into it from outside
        mine = os.readlink(f"/proc/{first}/ns/pid")
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(path / "ns" / "pid") == mine:
                    found.append(int(path.name))
    return sorted({*found})


class Machine:
    """One of them; made and started by `Machines`."""

    def __init__(self, machines: "Machines", number: int, name: str):
        self.machines, self.number, self.name, self.address = machines, number, name, f"{NETWORK}.{10 + number}"
        self.port, self.folder, self.log = f"v{number}", machines.folder / name, machines.folder / f"{name}.log"
        self.home, self.tmp = self.folder / "home", self.folder / "tmp"
        self.on = False
        self.frozen: list[int] = []
        self.entered: list[subprocess.Popen[bytes]] = []
        self._slow: subprocess.Popen[bytes] | None = None
        for folder in (self.home, self.tmp):
            folder.mkdir(parents=True)
        self.tmp.chmod(0o1777)
        self.boot()

    # --- power

    def boot(self) -> None:
        """Switch it on: its disk is as it was, its /dev/shm empty."""
        home, passwd = str(self.home), pwd.getpwuid(os.getuid()).pw_dir
        if self.machines.home:
            home = str(self.machines.home)
        lines = [f"hostname {self.name}", "mount --make-rprivate /"]
        # What lies below a folder that is about to be hidden stays where it is.
        for hidden, own in (("/tmp", str(self.tmp)), (passwd, home)):
            for kept in self.machines.kept:
                if kept.is_relative_to(hidden):
                    at = f"{own}/{kept.relative_to(hidden)}"
                    lines += [f"mkdir -p {at}", f"mount --rbind {kept} {at}"]
            lines += [f"mount --rbind {own} {hidden}"]
        lines += ["mount -t tmpfs -o size=2g none /dev/shm", "mount -t tmpfs none /sys/fs/cgroup"]
        hosts = ["127.0.0.1 localhost", *(self.machines.table or [f"127.0.1.1 {self.name}"])]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        lines += [
            f"mount --bind {self.folder}/hosts /etc/hosts",
            f"mount --bind {self.machines.folder}/resolv.conf /etc/resolv.conf",
        ]
        lines += [f"until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done; ip addr add {self.address}/24 dev eth0"]
        lines += ["ip link set eth0 up; ip link set lo up"]
        self.space = _Space(self.machines.building.enter(), "--net --uts --ipc", "\n".join(lines), self.log)
        self.machines.within(f"ip link add {self.port} type veth peer name eth0 netns {self.space.pid}")
        self.machines.within(f"ip link set {self.port} master bridge; ip link set {self.port} up")
        self.space.ready()
        self.on = True

    def power_off(self) -> None:
        """Take its power away."""
        self.space.end()
        self.on = False
        self.machines.within(f"while ip link show {self.port} >/dev/null 2>&1; do sleep 0.02; done")

    def pids(self) -> list[int]:
        """Its processes, as this system counts them."""
        return [pid for pid in pids_of(self.space.pid) if pid != self.space.pid]

    def freeze(self) -> None:
        """Stop every process of it, until `thaw`: what a hypervisor does to a machine that it moves."""
        self.frozen = self.pids()
        for pid in self.frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on, as if no time had passed."""
        # nsenter stops with the command that it waits for.
        for pid in [*self.frozen, *(entered.pid for entered in self.entered if entered.poll() is None)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []

    # --- network

    def cut(self) -> None:
        """Pull its network cable."""
        self.machines.within(f"ip link set {self.port} nomaster")

    def mend(self) -> None:
        """Put it back in, and take every fault off the link."""
        if self._slow:
            self._slow.kill()  # its devices go with it
            self._slow.wait()
            self._slow = None
            self.machines.within(f"ip link del s{self.number}")
        self.machines.within(f"ip link set {self.port} master bridge; tc qdisc del dev {self.port} root 2>/dev/null || true")
        self.run("tc", "qdisc", "del", "dev", "eth0", "root", check=False)

    def mute(self) -> None:
        """What it sends is lost; it still hears the others."""
        self.run("tc", "qdisc", "replace", "dev", "eth0", "root", *_NOTHING)

    def deafen(self) -> None:
        """It hears nothing; the others hear it."""
        self.machines.within(f"tc qdisc replace dev {self.port} root {' '.join(_NOTHING)}")

    def limit(self, rate: str) -> None:
        """Give its link a speed in both directions: 1gbit."""
        words = f"tbf rate {rate} burst 256k latency 50ms"
        self.run("tc", "qdisc", "replace", "dev", "eth0", "root", *words.split())
        self.machines.within(f"tc qdisc replace dev {self.port} root {words}")

    def slow(self, seconds: float, loss: float) -> None:
        """Make everything that goes over its link later by some seconds, each way, and lose a part of the packets."""
        near, far, bridge = f"n{self.number}", f"f{self.number}", f"s{self.number}"
        words = [sys.executable, str(ROOT / "benchmarks" / "slow_link.py"), near, far, str(seconds), str(loss)]
        self._slow = subprocess.Popen(
            ["nsenter", "-t", str(self.machines.building.pid), "-n", *words], stdout=subprocess.PIPE, preexec_fn=_dies_with_us
        )
        assert self._slow.stdout and self._slow.stdout.readline() == b"ready\n"
        self.machines.within(
            f"ip link add {bridge} type bridge; ip link set {self.port} master {bridge}; ip link set {near} master {bridge}; "
            f"ip link set {far} master bridge; for each in {bridge} {near} {far}; do ip link set $each up; done"
        )

    # --- commands

    def start(self, *words: object, log: Path | None = None, **environment: str) -> "Command":
        """Start a command on it, as root in the shared environment; its output goes to a file."""
        return Command(self, [str(word) for word in words], log, environment)

    def run(self, *words: object, check: bool = True, seconds: float = 120, **environment: str) -> str:
        """What a command on it printed, errors included."""
        command = self.start(*words, log=None, **environment)
        code, text = command.wait(seconds), command.text
        command.log.unlink()
        if check and code:
            raise RuntimeError(f"{self.name}: {shlex.join(map(str, words))} ended with {code}:\n{text}")
        return text

    def bash(self, script: str, check: bool = True, seconds: float = 120, **environment: str) -> str:
        """The same for a script."""
        return self.run("bash", "-c", script, check=check, seconds=seconds, **environment)


_NOTHING = ("tbf", "rate", "8bit", "burst", "1", "limit", "1")
"""A queue that nothing fits into."""


class Command:
    """A command on a machine."""

    def __init__(self, machine: Machine, words: list[str], log: Path | None, environment: dict[str, str]):
        self.machine, self.words = machine, words
        if log is None:
            handle, name = tempfile.mkstemp(prefix="command-", suffix=".log", dir=machine.machines.logs)
            os.close(handle)
            log = Path(name)
        self.log = log
        with log.open("ab") as file:
            self._entered = subprocess.Popen(
                [*machine.space.enter(), "env", "-C", str(machine.machines.cwd), *words], stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True, env={**machine.machines.environment, **environment},
            )  # fmt: skip

        machine.entered = [each for each in machine.entered if each.poll() is None] + [self._entered]

    @property
    def text(self) -> str:
        """What it has printed until now."""
        return self.log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._entered.poll()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        for pid in _children(self._entered.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Wait for its end; raises TimeoutError with what it printed."""
        try:
            return self._entered.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise TimeoutError(f"{self.machine.name}: {shlex.join(self.words)} ran for {seconds:g} s:\n{self.text}") from None


class Machines:
    """Machines that see each other, and nothing else."""

    def __init__(self, *names: str, one_home: bool = False, know_names: bool = True, environment: dict[str, str] | None = None):
        """
        Args:
            names: of the machines; each gets the next address.
            one_home: all have one home folder, as on a cluster with Slurm; else each has its own.
            know_names: each finds the others by name; else only itself, at a loopback address, as Debian has it.
            environment: further variables of every command.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="vm"))
        self.folder.chmod(0o755)
        self.shared, self.logs, self.cwd = self.folder / "shared", self.folder / "logs", ROOT
        for folder in (self.shared, self.logs):
            folder.mkdir()
        self.home = self.folder / "home" if one_home else None
        if self.home:
            self.home.mkdir()
        self.table = [f"{NETWORK}.{10 + i} {name}" for i, name in enumerate(names, 1)] if know_names else []
        (self.folder / "resolv.conf").write_text("")
        # Python and its packages, the repository, and what these machines share, wherever they lie.
        python = {Path(sys.base_prefix), Path(sys.prefix).resolve(), ROOT, Path(os.path.realpath(sys.executable)).parents[1]}
        self.kept = sorted({*python, self.folder})
        passwd = pwd.getpwuid(os.getuid())
        self.environment = {
            "HOME": passwd.pw_dir, "USER": passwd.pw_name, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **(environment or {}),
        }  # fmt: skip
        self._machines: dict[str, Machine] = {}
        try:
            self.building = _Space(
                [], "--net", "ip link add bridge type bridge; ip link set bridge up", self.folder / "building.log"
            )
            self.building.ready()
            for number, name in enumerate(names, 1):
                self._machines[name] = Machine(self, number, name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Machine:
        return self._machines[name]

    def __iter__(self):
        return iter(self._machines.values())

    def within(self, script: str) -> None:
        """Run a script in the building's network, with this system's processes in sight."""
        words = ["nsenter", "-t", str(self.building.pid), "-n", "bash", "-euc", script]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{script}: {done.stderr}")

    def close(self) -> None:
        """End everything, and remove every file."""
        for machine in self:
            if machine.frozen:
                machine.thaw()  # the end of a process that is stopped comes when it goes on
            machine.space.end()
            if machine._slow:
                machine._slow.kill()
                machine._slow.wait()
        if hasattr(self, "building"):
            self.building.end()
        shutil.rmtree(self.folder, ignore_errors=True)


class Slurm:
    """A real Slurm: the first machine has its controller and takes jobs, all others run them."""

    def __init__(self, machines: Machines, cpus: int):
        """
        Args:
            cpus: that Slurm believes each machine to have.
        """
        self.machines, folder = machines, machines.folder / "slurm"
        self.control, *self.nodes = machines
        for name in ("etc", "state", "munge"):
            (folder / name).mkdir(parents=True)
        settings = {
            "ClusterName": "box", "SlurmctldHost": f"{self.control.name}({self.control.address})", "SlurmUser": "root",
            "SlurmdUser": "root", "StateSaveLocation": folder / "state", "SlurmdSpoolDir": f"{folder}/spool.%n",
            "SlurmctldPidFile": folder / "slurmctld.pid", "SlurmdPidFile": f"{folder}/slurmd.%n.pid",
            "SlurmctldLogFile": folder / "slurmctld.log", "SlurmdLogFile": f"{folder}/slurmd.%n.log",
            "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core", "ReturnToService": 2, "SlurmdParameters": "config_overrides",
            "SlurmdTimeout": 10, "SchedulerParameters": "bf_interval=1",
            "AuthInfo": "cred_expire=5",  # a requeued job waits for the end of its credential, two minutes by default
            "GresTypes": "gpu",  # so that --gpus-per-node=0 means something
        }  # fmt: skip
        lines = [f"{name}={value}" for name, value in settings.items()]
        for node in self.nodes:
            lines.append(f"NodeName={node.name} NodeAddr={node.address} CPUs={cpus} RealMemory=1000 State=UNKNOWN")
        lines.append("PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO")
        (folder / "etc" / "slurm.conf").write_text("\n".join(lines) + "\n")
        cgroup = f"CgroupMountpoint={folder}/cgroup\nCgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"
        (folder / "etc" / "cgroup.conf").write_text(cgroup)
        (folder / "cgroup").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for machine in machines:  # one munged is enough, for its socket is a file that all see
            machine.bash(f"mount --bind {folder}/etc /etc/slurm; mkdir -p /run/munge; mount --bind {folder}/munge /run/munge")
        munged = f"munged --foreground --force --key-file={key} --seed-file={folder}/seed --pid-file={folder}/munged.pid"
        self.control.start(*munged.split(), f"--log-file={folder}/munged.log", log=folder / "munged.out")
        wait_for((folder / "munge" / "munge.socket.2").exists, "munged", 20)
        self.control.start("slurmctld", "-D", log=folder / "slurmctld.out")
        for node in self.nodes:
            self.serve(node)
        wait_for(self.idle, f"idle machines, see {folder}", 60)

    def serve(self, node: Machine) -> None:
        """Start its slurmd: now, and again when it was booted."""
        folder = self.machines.folder / "slurm"
        (folder / f"spool.{node.name}").mkdir(exist_ok=True)
        if not Path(f"/proc/{node.space.pid}/root/etc/slurm/slurm.conf").exists():
            node.bash(f"mount --bind {folder}/etc /etc/slurm; mkdir -p /run/munge; mount --bind {folder}/munge /run/munge")
        node.start("slurmd", "-D", "-N", node.name, log=folder / f"slurmd.{node.name}.out")

    def idle(self) -> bool:
        """Whether no job is on any machine, and every machine is there."""
        return self.control.run("sinfo", "-h", "-o", "%T", check=False).split() == ["idle"]

    def submit(self, *words: object, **environment: str) -> int:
        """sbatch, from the shared working directory; returns the job's number."""
        return int(self.control.run("sbatch", "--parsable", *words, **environment))

    def state(self, job: int) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, ...; UNKNOWN when Slurm has forgotten it."""
        words = self.control.run("scontrol", "-o", "show", "job", job, check=False).split()
        return next((word.partition("=")[2] for word in words if word.startswith("JobState=")), "UNKNOWN")

    def wait(self, job: int, seconds: float = 300) -> str:
        """Wait for a job's end; returns its last state."""
        living = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED"}
        return wait_for(lambda: (now := self.state(job)) not in living and now, f"the end of job {job}", seconds, 0.5)


class Ssh:
    """sshd on machines with homes of their own, and a key that leads from the first machine to all others."""

    def __init__(self, machines: Machines):
        folder = machines.folder / "ssh"
        folder.mkdir()
        self.key = folder / "key"
        for name in ("key", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        for machine in machines:
            for file in Path("/etc/skel").iterdir():
                shutil.copy(file, machine.home)
        first, *others = machines
        place = first.home / ".ssh"
        place.mkdir(mode=0o700)
        shutil.copy(self.key, place / "id_ed25519")
        for machine in others:
            (machine.home / ".ssh").mkdir(mode=0o700)
            shutil.copy(f"{self.key}.pub", machine.home / ".ssh" / "authorized_keys")
            options = "-o UsePAM=no -o PermitRootLogin=yes -o StrictModes=no -o PidFile=none -o PasswordAuthentication=no"
            machine.run("mkdir", "-p", "/run/sshd")
            machine.start("/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", folder / "host", *options.split())
