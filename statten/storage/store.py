"""The objects of one storage in s3://, gs:// or whatever else pyarrow opens, by their names below it.

An endpoint other than AWS's own is named in the URI, `s3://bucket/runs?endpoint_override=http://127.0.0.1:9000`, or by
$AWS_ENDPOINT_URL; one other than Google's in `gs://bucket/runs?scheme=http&endpoint_override=127.0.0.1:9000`. Credentials
never are: they come from where the store's own tools look for them.
"""

import hashlib
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from statten.errors import UserError, holds_secret, user_path
from statten.files import cache_folder, write_json
from statten.machine import leads_here
from statten.records.reading import read
from statten.records.stores import Storage

log = logging.getLogger("statten")

T = TypeVar("T")
Stamp = list[int]
"""Size and time of the last change in nanoseconds, by which a file is known to have changed."""

STORAGE = ".storage.json"
REFUSED = re.compile("ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|SIGNATURE|EXPIRED|PERMISSION|UNAUTHENTICATED", re.I)
GOOGLE_SECONDS = 10
"""For which Google's own client asks again before it says that it gets no answer."""
CHUNK = 8 << 20


# The store.


def is_uri(text: str) -> bool:
    """Whether a place is given as URI rather than as a folder."""
    return "://" in text


def check_uri(text: str) -> None:
    """Raise UserError where a URI holds credentials."""
    if holds_secret(text) or (text.startswith("s3:") and "@" in text.partition("?")[0]):
        raise UserError(
            "--storage: credentials have no place in a URI, where they would be written down; put them into the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET) or into "
            "~/.aws/credentials; Google's come from: gcloud auth application-default login"
        )


def working_copy(text: str) -> Path:
    """The folder to work in for a storage that is given as a folder or a URI; nothing is asked of the store yet."""
    if not is_uri(text):
        return user_path(text)
    check_uri(text)
    uri = join_uri(text, "")
    files, base = _open(uri)
    if files.type_name == "local":
        return Path(base)
    folder = cache_folder().absolute() / hashlib.sha256(uri.encode()).hexdigest()[:16]
    try:
        known = read(folder / STORAGE, Storage)
    except UserError:  # damaged
        known = None
    if known != {"uri": uri}:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(folder / STORAGE, {"uri": uri})
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}; name a folder in $STATTEN_CACHE") from None
    return folder


def split_uri(text: str) -> tuple[str, str]:
    """The storage and the name that the URI of a run means."""
    address, mark, query = text.partition("?")
    storage, _, name = address.rstrip("/").rpartition("/")
    return storage + mark + query, name


def join_uri(uri: str, name: str) -> str:
    address, mark, query = uri.partition("?")
    return "/".join(filter(None, [address.rstrip("/"), name])) + mark + query


def _open(uri: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    asked = uri
    if uri.startswith(("gs:", "gcs:")) and "retry_limit_seconds=" not in uri:
        # Left to itself, Google's client asks again for a quarter of an hour, and says nothing; `_patiently` does.
        asked += f"{'&' if '?' in uri else '?'}retry_limit_seconds={GOOGLE_SECONDS}"
    if uri.startswith(("gs:", "gcs:")):
        _reach_directly(parse_qs(urlsplit(uri).query).get("endpoint_override", [""])[0])
    try:
        files, base = FileSystem.from_uri(asked)
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"--storage: {uri} cannot be opened: {explain(error)}") from None
    return files, base.rstrip("/")


def _reach_directly(endpoint: str) -> None:
    """Tell Google's client, which asks $http_proxy for everything, that no proxy reaches a loopback address."""
    known, host = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "", endpoint.rpartition(":")[0] or endpoint
    if leads_here(f"http://{endpoint}") and host not in known.split(","):
        os.environ["no_proxy"] = f"{known},{host}".lstrip(",")


class Store:
    """The objects of one storage, by their names below it."""

    def __init__(self, uri: str, patience: float = 0.0):
        self.uri, self.patience = uri, patience
        self.files, self.base = _open(uri)

    def check(self) -> None:
        """Raise UserError unless the bucket is there and can be listed."""
        from pyarrow.fs import FileType

        bucket = self.base.partition("/")[0]
        with self.speaking():
            try:
                missing = self.files.get_file_info(bucket).type == FileType.NotFound
            except OSError as error:
                if not _refused(error):
                    raise
                missing = False  # who may use what is in a bucket need not be allowed to look at the bucket itself
            if missing:
                raise UserError(f"--storage: {self.uri}: there is no bucket {bucket}; make it first, or name another")
            self.names()

    def check_writable(self) -> None:
        """Raise UserError unless an object can be made and deleted."""
        probe = f".probe-{uuid.uuid4().hex}"
        with self.speaking():
            self.write(probe, b"")
            self.delete(probe)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Turn what the store says into one sentence."""
        try:
            yield
        except OSError as error:
            raise UserError(f"--storage: {self.uri}: {explain(error)}") from None

    def names(self) -> list[str]:
        """Of the runs and sweeps."""
        from pyarrow.fs import FileSelector

        if self.files.type_name == "gcs":  # whose folders are in no listing, for there are none
            found = sorted({file.partition("/")[0] for file in self.listing()})
        else:
            selector = FileSelector(self.base, allow_not_found=True)
            found = [info.base_name for info in self._patiently(lambda: self.files.get_file_info(selector))]
        return [name for name in found if not name.startswith(".")]

    def listing(self, name: str = "") -> dict[str, Stamp]:
        """The objects below a name, by their names relative to it."""
        from pyarrow.fs import FileSelector

        folder = self._path(name)
        found = self._patiently(lambda: self.files.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True)))
        return {info.path[len(folder) + 1 :]: [info.size, info.mtime_ns] for info in found if info.is_file}

    def get(self, name: str, path: Path) -> None:
        """Bring an object into a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as sink:
                self._patiently(lambda: self._copy(name, sink))
            os.chmod(aside, 0o644)
            os.replace(aside, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(aside)
            raise

    def _copy(self, name: str, sink: Any) -> None:
        sink.seek(0)
        sink.truncate()
        with self.files.open_input_stream(self._path(name)) as source:
            while chunk := source.read(CHUNK):
                sink.write(chunk)

    def put(self, path: Path, name: str) -> None:
        """Send a file; an object appears when all of it has arrived."""
        self._patiently(lambda: self._send(path, name))

    def _send(self, path: Path, name: str) -> None:
        with path.open("rb") as source, self.files.open_output_stream(self._path(name)) as sink:
            while chunk := source.read(CHUNK):
                sink.write(chunk)

    def read(self, name: str) -> bytes | None:
        """Content of an object; None where there is none."""

        def once() -> bytes:
            with self.files.open_input_stream(self._path(name)) as source:
                return source.read()

        with suppress(FileNotFoundError):
            return self._patiently(once)
        return None

    def write(self, name: str, content: bytes) -> None:
        """Make or replace an object."""

        def once() -> None:
            with self.files.open_output_stream(self._path(name)) as sink:
                sink.write(content)

        self._patiently(once)

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        with suppress(FileNotFoundError):
            self._patiently(lambda: self.files.delete_file(self._path(name)))

    def seconds_since(self, name: str) -> float:
        """Age of an object."""
        info = self._patiently(lambda: self.files.get_file_info(self._path(name)))
        return time.time() - (info.mtime_ns or 0) / 1e9

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}" if name else self.base

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do it, and where the store does not answer do it again, with pauses that grow."""
        began, pause = time.monotonic(), 1.0
        while True:
            try:
                return action()
            except OSError as error:
                waited = time.monotonic() - began
                if error.errno is not None or _refused(error) or waited >= self.patience:
                    raise
                if pause == 1.0:
                    log.warning("%s does not answer (%s); trying again", self.uri, explain(error))
            time.sleep(pause)
            pause = min(2 * pause, 30.0)


def _refused(error: OSError) -> bool:
    """Whether a store gave an answer that asking again does not change."""
    return REFUSED.search(str(error)) is not None


def explain(error: BaseException) -> str:
    """What a store says, without the numbers of its request."""
    text = str(error).strip() or type(error).__name__
    if google := re.search(r"google::cloud::Status\((.*)", text, re.S):
        said = re.sub(r" error_info=.*|\)\. Detail:.*", "", google[1], flags=re.S).rpartition("with a last message of ")[2]
        if "OAuth2 access token" in said:
            said = "no credentials of Google Cloud are found"
        if re.search(r"no credentials|PERMISSION_DENIED|UNAUTHENTICATED|code: 40[13]", f"{google[1]} {said}"):
            said += "; make some with: gcloud auth application-default login"
        return said.rstrip(". ")
    reason = re.sub(r" \(Request ID: [^)]*\)|; Details:.*", "", text.splitlines()[0]).rstrip(". ")
    if re.search(r"ACCESS_KEY|ACCESS_DENIED|SIGNATURE|credentials", reason, re.I):
        reason += "; look at the credentials in the environment or in ~/.aws/credentials"
    return reason
