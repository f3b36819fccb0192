"""Ray, started or joined the same way everywhere: quiet, on loopback, with nothing sent home."""

import logging
import os
import secrets
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from statten.cluster.token import own_token, token_file, token_refused
from statten.errors import UserError, first_line
from statten.machine import whole_cores

# Read by Ray when it is imported or started, in this process and in its workers.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # `report` waits for one poll
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # then it looks again how many workers there is room for
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end the trials and return as if all were done
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their own TensorBoard events
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a resumed trial may have no epoch left to report, a diverged one none at all
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # a stack trace for every SIGTERM; Python's own tells of crashes
}

SOCKET_PATH = 107
"""Characters of a socket's path at most."""
RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""What Ray puts below its temporary folder."""


@contextmanager
def ray_cluster(address: str | None, dashboard: bool = False) -> Iterator[dict[str, float]]:
    """Join the Ray cluster at `address`, or start Ray on this machine, and yield its resources; leave it as found.

    Args:
        address: host:port, ray://host:port or `auto`; None means $RAY_ADDRESS, which Ray sets for a submitted job, or starts
            Ray here.
        dashboard: also start the dashboard (loopback), which nested trainers need to give their resources back.

    Raises:
        UserError: the cluster cannot be reached.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or None
    import ray

    if ray.is_initialized():  # a notebook's, or a test's
        yield ray.cluster_resources()
        return
    # Who takes a machine away tells a cluster's Ray; to watch for it takes one more process.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if address is None else "1"
    if address is None:
        own_token()
    elif "RAY_AUTH_TOKEN" in os.environ or token_file().is_file():
        # `ray start` asks for the token that it finds or makes; `ray.init` sends it only when it is told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    forget_token()
    for name in ("ray", "ray.train", "ray.tune", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            with _on_loopback():
                ray.init(
                    address="local",  # without it, a cluster that crashed here some day would be waited for
                    num_cpus=whole_cores(),
                    include_dashboard=dashboard,
                    dashboard_host="127.0.0.1",
                    dashboard_port=free_port() if dashboard else None,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=_session_folder(),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        else:
            if address == "auto":
                address = ray._private.services.get_ray_address_from_environment(address, None)
            knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        if address is None:
            raise UserError(f"Ray cannot start on this machine: {first_line(error)}") from None
        if "InvalidAuthToken" in str(error.__cause__):
            raise UserError(f"scale.address: {token_refused(address)}") from None
        raise UserError(f"scale.address: cannot reach the Ray cluster at {address}: {first_line(error)}") from None
    finally:
        if callable(on_term) and threading.current_thread() is threading.main_thread():  # Ray's own handler says nothing
            signal.signal(signal.SIGTERM, on_term)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def forget_token() -> None:
    """Have Ray read token and mode anew: a process, a notebook's say, keeps those that it met first."""
    import ray

    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    ray._raylet.Config.initialize("")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have Ray keep 127.0.0.1, and listen there alone, as on systems where it makes no clusters; else it takes another."""
    import ray

    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def ray_temp() -> Path:
    """Where Ray puts sockets, logs and objects that do not fit into shared memory."""
    names = ["RAY_TMPDIR", "TMPDIR"] if sys.platform.startswith("linux") else ["RAY_TMPDIR"]
    return Path(next((os.environ[name] for name in names if name in os.environ), "/tmp"))


def _session_folder() -> str | None:
    """A folder of this user's for Ray's sessions, which Ray opens to all; None where their paths would be too long."""
    folder = ray_temp() / f"statten-{os.getuid()}"
    if len(str(folder / RAY_SOCKET)) > SOCKET_PATH:
        return None
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    with suppress(OSError):
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return str(folder / "ray")
    return tempfile.mkdtemp(prefix="statten-", dir=ray_temp())


def knock(address: str, seconds: float = 10) -> None:
    """Raise OSError where nobody listens: Ray itself would ask again for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()


def free_port(host: str = "127.0.0.1") -> int:
    """A port at which nobody listens.

    It lies below those that Linux gives to whoever opens a connection, one of which might have it before it is used, and
    above those of Ray's workers.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port
