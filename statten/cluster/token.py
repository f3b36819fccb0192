"""The token that a cluster asks for. It is a password: it stands in a file of its owner's, and is printed nowhere."""

import os
import secrets
import shlex
from pathlib import Path

from statten.errors import UserError, user_path

# The token that a cluster asks for. It is a password: it stands in a file of its owner's, and is printed nowhere.


def token_file() -> Path:
    """Where Ray looks for the token of a cluster: $RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return user_path(named) if named else Path.home() / ".ray" / "auth_token"


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


def own_token() -> None:
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
