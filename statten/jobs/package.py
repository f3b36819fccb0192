"""The working directory that travels with a submitted job: code and small files, and nothing that must stay at home.

Left out are data, runs, environments, caches, git's history and what git ignores, links that lead elsewhere - and secrets, by
their names and, for private keys and the cluster's own token, by what they hold. The zip file depends on names and contents
alone, so that a cluster that has it is not sent it again.
"""

import math
import os
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
    ".gcloud", ".ray",
)  # fmt: skip
SECRET_WORDS = ("*token*", "*secret*", "*credential*", "*password*")  # in a source file's name they say what it is about
SOURCES = (".py", ".md")
_KEY = b"PRIVATE KEY-----"


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
    if path.stat().st_size > 2**20:
        return False
    content = path.read_bytes()
    begins = any(line.startswith(b"-----BEGIN ") and line.rstrip().endswith(_KEY) for line in content.splitlines())
    return begins or (token is not None and token.encode() in content)


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
