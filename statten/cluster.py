"""Ray, started or joined the same way everywhere: quiet, on loopback, with nothing sent home."""

import logging
import os
import secrets
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from statten.errors import UserError

# Read by Ray when it is imported or started, in this process and in its workers.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # `report` waits for one poll
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # then it looks again how many workers there is room for
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their own TensorBoard events
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a resumed trial may have no epoch left to report, a diverged one none at all
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
}


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
    if address is None:
        _own_token()
    elif "RAY_AUTH_TOKEN" in os.environ or token_file().is_file():
        # `ray start` asks for the token that it finds or makes; `ray.init` sends it only when it is told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        ray._raylet.Config.initialize("")  # it read the variable when it was imported
    for name in ("ray", "ray.train", "ray.tune", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if address is None:
            ray.init(
                address="local",  # without it, a cluster that crashed here some day would be waited for
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                dashboard_port=free_port() if dashboard else None,
                _node_ip_address="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            if address == "auto":
                address = ray._private.services.get_ray_address_from_environment(address, None)
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        if address is None:
            raise UserError(f"Ray cannot start on this machine: {_first_line(error)}") from None
        if "InvalidAuthToken" in str(error.__cause__):
            raise UserError(f"scale.address: {token_refused(address)}") from None
        raise UserError(f"scale.address: cannot reach the Ray cluster at {address}: {_first_line(error)}") from None
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would ask again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---------------------------------------------------------------------------------------------------------------------
# The token that a cluster asks for. It is a password: it stands in a file of its owner's, and is printed nowhere.


def token_file() -> Path:
    """Where Ray looks for the token of a cluster: $RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"


def read_token() -> str | None:
    """The token of this user's clusters, from $RAY_AUTH_TOKEN or the token file; None where there is none.

    Raises:
        UserError: others can read the file, or it holds no token.
    """
    source, token = "RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = token_file()
        if not path.is_file():
            return None
        _check_private(path)
        source, token = str(path), path.read_text(encoding="utf-8", errors="replace")
    token = token.strip()
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"{source}: holds no token; copy the file of the cluster's head node")
    return token


def token_refused(where: str) -> str:
    """The sentence for a cluster that does not take the token of this user."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return f"{where} refuses the token of RAY_AUTH_TOKEN; take the one in ~/.ray/auth_token of the cluster's head node"
    if token_file().is_file():
        return f"{where} refuses the token of {token_file()}; copy ~/.ray/auth_token of the cluster's head node there"
    return (
        f"{where} asks for a token, and there is none here; copy ~/.ray/auth_token of the cluster's head node to "
        f"{token_file()}, readable by you alone"
    )


def make_token() -> Path:
    """The token file, made if there is none: 256 random bits that only its owner can read.

    Raises:
        UserError: others can read the file that is there, or it holds no token.
    """
    path = token_file()
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    elif "RAY_AUTH_TOKEN" not in os.environ:
        read_token()
    return path


def _own_token() -> None:
    """Have a token for a Ray that is started here, before Ray makes one in a file that everyone can read."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        return
    path = token_file()
    try:
        if path.is_file():
            path.chmod(0o600)  # Ray's own commands leave it open
        else:
            make_token()
    except FileExistsError:
        pass  # another command made it in this moment
    except OSError:  # no home to write to: a token that ends with this process will do
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_private(path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UserError(
            f"{path}: holds a cluster's token and must be readable by its owner alone, but its mode is {mode:o}; "
            f"type: chmod 600 {shlex.quote(str(path))}"
        )
