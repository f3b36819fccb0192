"""The working directory that travels with a submitted job: code and small files, and nothing that must stay at home.

Left out are data, runs, environments, caches, git's history and what git ignores, links that lead elsewhere - and secrets, by
their names and, for keys and tokens of known forms and the cluster's own, by what they hold. The zip file depends on names and
contents alone, so that a cluster that has it is not sent it again.
"""

import math
import mmap
import os
import re
import subprocess
import zipfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from statten.errors import UserError
from statten.storage.mirror import MARKERS

LIMIT = 512 * 2**20  # bytes of a message that a cluster's head takes

HISTORY = (".git", ".hg", ".svn")
ENVIRONMENTS = (".venv", "venv", ".tox", ".nox", ".conda", "node_modules", "site-packages")
CACHES = (
    "__pycache__", ".cache", ".*_cache", "*.egg-info", ".eggs", ".ipynb_checkpoints", ".idea", ".vscode", "*.pyc", ".coverage",
    ".DS_Store", "core.[0-9]*",
)  # fmt: skip
# Left out unless they are packages: `statten/data` is one.
DATA = ("data", "datasets", "runs", "wandb", "mlruns", "lightning_logs", "tensorboard", "build", "dist")
SECRETS = (
    ".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.gpg", "*.asc", "id_rsa*",
    "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".htpasswd", "kubeconfig*",
    "*service*account*.json", "*.tfvars", "*.tfstate", ".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker",
    ".gcloud", ".ray", ".config", "gcloud", "*.ppk", ".my.cnf", ".mylogin.cnf", ".boto", ".s3cfg", ".passwd-s3fs",
    "rclone.conf", ".dockercfg", ".dockerconfigjson", "kaggle.json", ".terraformrc", "hosts.yml", "*_history", ".histfile",
    ".lesshst", "*.keystore", "*.keytab", "*.ovpn", "*.agekey",
)  # fmt: skip
SECRET_WORDS = ("*token*", "*secret*", "*credential*", "*password*")  # in a source file's name they say what it is about
SOURCES = (".py", ".md")
# What a file holds, whatever it is called: what such a secret begins with, which is found fast, and the whole of it. Formats
# that nothing else has: who looks for passwords and random text too, as detect-secrets does, keeps code at home.
_HELD = {
    # PEM, in JSON and YAML too; not the marker alone, which documents name.
    b"PRIVATE KEY": rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    rb"(?:\\[nr]|[\s\"',+>|\\])*(?:[A-Za-z0-9+/]{24}|Proc-Type:)",
    b"PuTTY-User-Key-File-": rb"PuTTY-User-Key-File-\d",
    b"AGE-SECRET-KEY-1": rb"AGE-SECRET-KEY-1[A-Z0-9]{20}",
    b"AKIA": rb"\bAKIA[A-Z0-9]{16}\b",
    b"ASIA": rb"\bASIA[A-Z0-9]{16}\b",
    b"aws_secret_access_key": rb"aws_secret_access_key\s*[=:]\s*[\"']?[A-Za-z0-9+/]{40}",
    b"oauth_token": rb"\boauth_token\s*[=:]\s*[\"']?[A-Za-z0-9_]{20}",
    b"ghp_": rb"\bghp_[A-Za-z0-9]{36}",
    b"gho_": rb"\bgho_[A-Za-z0-9]{36}",
    b"github_pat_": rb"\bgithub_pat_[A-Za-z0-9_]{60}",
    b"glpat-": rb"\bglpat-[A-Za-z0-9_-]{20}",
    b"AIza": rb"\bAIza[A-Za-z0-9_-]{35}",
    b"xox": rb"\bxox[abprs]-[A-Za-z0-9-]{20}",
    b"hf_": rb"\bhf_[A-Za-z0-9]{34}",
    b"sk-": rb"\bsk-[A-Za-z0-9_-]{40}",
    b"npm_": rb"\bnpm_[A-Za-z0-9]{36}",
    b"pypi-AgE": rb"\bpypi-AgE[A-Za-z0-9_-]{40}",
    b"AccountKey=": rb"\bAccountKey=[A-Za-z0-9+/]{80}",
}


@dataclass(frozen=True)
class Package:
    """A packed working directory."""

    file: Path
    """The zip file."""
    names: tuple[str, ...]
    """What it holds, relative to the folder."""
    bytes: int
    """Size of the zip file."""
    secrets: tuple[str, ...]
    """Files and folders that were left out because they are, or look like, secrets."""

    @property
    def size(self) -> str:
        """The size for a person."""
        return shown(self.bytes)


def pack(folder: Path, file: Path, leave_out: Collection[Path] = (), token: str | None = None) -> Package:
    """Pack a working directory.

    Args:
        folder: what is packed.
        file: the new zip file, outside of `folder`.
        leave_out: further files and folders that stay, such as the storage and the data's root.
        token: the cluster's token: a file that holds it is left out.

    Raises:
        UserError: there is more than a cluster takes.
    """
    kept, secrets = survey(folder, leave_out, token)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in kept:
            path = folder / name
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                while block := source.read(2**20):
                    target.write(block)
                    if file.stat().st_size > LIMIT:
                        raise _too_large(folder, kept)
    size = file.stat().st_size
    if size > LIMIT:
        raise _too_large(folder, kept)
    return Package(file, tuple(kept), size, tuple(secrets))


def survey(folder: Path, leave_out: Collection[Path] = (), token: str | None = None) -> tuple[list[str], list[str]]:
    """Names of the files that travel, and of the secrets that do not, both sorted and relative to `folder`."""
    stays = {path.resolve() for path in leave_out} | _ignored(folder)
    kept: list[str] = []
    secrets: list[str] = []
    for root, folders, files in os.walk(folder):
        here = Path(root)
        inside = []
        for name in sorted(folders):
            path = here / name
            if _named(name, (*SECRETS, *SECRET_WORDS)) and not (path / "__init__.py").is_file():
                secrets.append(str(path.relative_to(folder)))
            elif not (path.is_symlink() or path.resolve() in stays or _is_folder_to_leave(path)):
                inside.append(name)
        folders[:] = inside
        for path in (here / name for name in sorted(files)):
            if not path.is_file() or _named(path.name, CACHES) or path.resolve() in stays or _leads_out(path, folder):
                continue
            (secrets if _is_secret(path, token) else kept).append(str(path.relative_to(folder)))
    return sorted(kept), sorted(secrets)


def shown(size: float) -> str:
    """A number of bytes for a person."""
    if size < 1024:
        return f"{size:.0f} B"
    power = min(3, int(math.log(size, 1024)))
    return f"{size / 1024**power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def _is_folder_to_leave(path: Path) -> bool:
    if _named(path.name, (*HISTORY, *ENVIRONMENTS, *CACHES)):
        return True
    if (path / "pyvenv.cfg").is_file() or (path / "conda-meta").is_dir():
        return True  # an environment under another name
    if (path / "config.yaml").is_file() and any((path / marker).is_file() for marker in MARKERS):
        return True
    return _named(path.name, DATA) and not (path / "__init__.py").is_file()


def _is_secret(path: Path, token: str | None) -> bool:
    if _named(path.name, SECRETS) or (_named(path.name, SECRET_WORDS) and path.suffix not in SOURCES):
        return True
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if token is not None and content.find(token.encode()) >= 0:
            return True
        return any(content.find(start) >= 0 and re.search(whole, content) for start, whole in _HELD.items())


def _leads_out(path: Path, folder: Path) -> bool:
    return path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())


def _named(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def _ignored(folder: Path) -> set[Path]:
    """What git ignores in a folder of a repository; nothing where there is no git."""
    listing = ["git", "-C", str(folder), "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory", "."]
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(listing, capture_output=True, check=True, timeout=120).stdout
        return {(folder / os.fsdecode(name)).resolve() for name in found.split(b"\0") if name}
    return set()


def _too_large(folder: Path, kept: list[str]) -> UserError:
    sizes: dict[str, int] = {}
    for name in kept:
        top = name.partition("/")[0]
        sizes[top] = sizes.get(top, 0) + (folder / name).stat().st_size
    largest = sorted(sizes, key=lambda top: -sizes[top])[:5]
    named = ", ".join(f"{top} ({shown(sizes[top])})" for top in largest)
    return UserError(
        f"{folder}: a working directory may have at most {shown(LIMIT)} as a zip file, but this one has more; the largest are "
        f"{named}; keep data and runs elsewhere, or name them in .gitignore"
    )


def travelling(package_names: Collection[str], folder: Path, paths: Collection[tuple[str, Path]]) -> Iterator[str]:
    """A sentence for every needed file (what it is, path) that does not travel."""
    for what, path in paths:
        try:
            name = str(path.resolve().relative_to(folder.resolve()))
        except ValueError:
            yield f"{what}: {path} lies outside of {folder}, the folder that travels; copy it there"
            continue
        if name not in package_names:
            yield f"{what}: {path} would be left at home, as data, runs, secrets and what git ignores are; move or rename it"
