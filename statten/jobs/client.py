"""Jobs on a cluster, through Ray Jobs: submit, list, follow, stop, wait.

A job has a name, which is also the name of its run or sweep, and an ID, `name-1`, `name-2`, ..., for each time that it was
submitted: the same name goes on where it was, and is never submitted while it lives. Wherever an ID is asked for, a name means
its latest submission. Nothing here holds a job: a client that goes away, or is stopped, leaves it alone.
"""

import contextlib
import dataclasses
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from statten.cluster.session import knock
from statten.cluster.token import read_token, token_refused
from statten.errors import Failed, UserError, nearest
from statten.jobs.file import SUBMITTED, Runtime
from statten.jobs.package import Package, pack, travelling
from statten.machine import leads_here

DASHBOARD = "http://127.0.0.1:8265"
PROBE = "statten-doctor-"
"""How the names of jobs begin with which `statten doctor` looks at a cluster."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_SECONDS = 1.0
RETRY_SECONDS = 2.0
LOST = "connection to {} lost, trying again; the job goes on by itself"
_TIMEOUT = (10, 120)  # seconds for a connection, for an answer


class Unreachable(UserError):
    """No answer, for now or for ever."""


class NoSuchJob(UserError):
    """The cluster knows no job of this ID."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a cluster says about a job."""

    id: str
    name: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """Of its command, once that has ended."""
    message: str
    command: str
    started: str | None
    ended: str | None

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.status not in ENDED

    @property
    def probe(self) -> bool:
        """Whether it is none of the user's, but of `statten doctor`."""
        return self.name.startswith(PROBE)

    @property
    def code(self) -> int:
        """The exit code for whoever waits: the job's own; 1 where it was stopped or lost."""
        return 0 if self.status == "SUCCEEDED" else self.exit_code or 1


@dataclasses.dataclass(frozen=True)
class Submission:
    """A job that was checked and can be sent."""

    name: str
    entrypoint: str
    """Its command, as the cluster's shell runs it in the working directory."""
    runtime: Runtime = dataclasses.field(default_factory=Runtime)
    files: tuple[tuple[str, Path], ...] = ()
    """What it reads from the working directory: what it is, path."""
    leave_out: tuple[Path, ...] = ()
    """What must not travel: storage and data."""


def dashboard_url(address: str | None = None) -> str:
    """The URL of a dashboard, where Ray takes jobs.

    `address`, else $RAY_API_SERVER_ADDRESS, else that of cluster/local.sh on this machine, else port 8265 of this machine.
    """
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _local() or DASHBOARD
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    try:
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.username
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"--address: must be the URL of a Ray dashboard such as http://HEAD:8265, but got {address or url}")
    return url.rstrip("/")


def _local() -> str | None:
    """What cluster/local.sh wrote down of its dashboard, if it is still there."""
    with contextlib.suppress(OSError, RuntimeError):  # no file, no home, or nobody listens any more
        url = (Path.home() / ".ray" / "dashboard_url").read_text(encoding="ascii", errors="replace").strip()
        knock(url)
        return url
    return None


def _proxy_named(url: str) -> str:
    """The end of a sentence: which variable sends what is asked of a URL to a proxy; its value may hold a password."""
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    used = {} if leads_here(url) or proxy_bypass(host) else getproxies()
    found = next((name for name in (scheme, "all") if name in used), None)
    if found is None:
        return ""
    names = (f"{found}_proxy", f"{found.upper()}_PROXY")
    named = next((name for name in names if os.environ.get(name)), names[0])
    return f"; ${named} sends it to a proxy: add {host} to $no_proxy if that cannot reach it"


class JobClient:
    """The jobs of one cluster."""

    def __init__(self, address: str | None = None):
        """Connect to the dashboard at `address`; raises UserError where nothing answers, or the token is missing or wrong."""
        self.url = dashboard_url(address)
        self._token = read_token()
        self._client = self._connect()

    def _connect(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        direct = {"proxies": {"no_proxy": "*"}} if leads_here(self.url) else {}

        class Client(JobSubmissionClient):
            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(method, endpoint, **{"timeout": _TIMEOUT, **direct, **options})

        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        with self._plainly(), _only_address(self.url):
            return Client(self.url, headers=headers)

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Say in a sentence what Ray, and the requests library below it, raise."""
        from ray.exceptions import AuthenticationError

        through = _proxy_named(self.url)
        stranger = f"--address: what answers at {self.url} is no Ray dashboard{through}"
        try:
            yield
        except AuthenticationError:
            raise UserError(token_refused(self.url)) from None
        except OSError as error:  # of requests, too
            answer = getattr(error, "response", None)
            if isinstance(error, ValueError) or (answer is not None and answer.status_code < 500):
                raise UserError(stranger) from None
            raise Unreachable(
                f"--address: nothing answers at {self.url}; is the cluster up, its dashboard reachable?{through}"
            ) from None
        except KeyError:
            raise UserError(stranger) from None
        except RuntimeError as error:
            found = re.search(r"status code (\d+): (.*)", str(error), re.S)
            if "Version check returned 404" in str(error):
                raise UserError(stranger) from None
            if found and found[1] == "404":
                raise NoSuchJob(found[2].strip()) from None
            if found and found[1].startswith("5") and "already exists" not in found[2]:
                # The head is there, but not yet (or no longer) its agent, or the machine that has the log.
                raise Unreachable(f"{self.url}: {_last_line(found[2])}") from None
            raise UserError(f"{self.url}: {_last_line(found[2] if found else str(error))}") from None

    def version(self) -> str:
        """Ray's version there."""
        return str(self._client._server_ray_version)

    def jobs(self) -> list[Job]:
        """All submitted jobs that the cluster remembers, oldest first."""
        with self._plainly():
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started or "")

    def job(self, id: str) -> Job:
        """One job; raises NoSuchJob."""
        with self._plainly():
            return _job(self._client.get_job_info(id))

    def find(self, id_or_name: str) -> Job:
        """The job of this ID, or the latest one of this name; raises NoSuchJob with the nearest."""
        jobs = self.jobs()
        for job in reversed(jobs):
            if id_or_name in (job.id, job.name):
                return job
        near = nearest(id_or_name, [job.id for job in jobs]) if jobs else "it has none"
        raise NoSuchJob(f"{id_or_name}: no such job at {self.url}; {near}")

    def logs(self, id: str) -> str:
        """Everything that a job has printed."""
        with self._plainly():
            return str(self._client.get_job_logs(id))

    def stop(self, id_or_name: str, seconds: float = 60) -> Job:
        """Stop a job, and wait until it has ended; one that has ended already stays as it is."""
        job = self.find(id_or_name)
        if job.live:
            with self._plainly():
                self._client.stop_job(job.id)
        deadline = time.monotonic() + seconds
        while job.live:
            if time.monotonic() > deadline:
                raise Failed(f"{job.id}: was told to stop, but is still {job.status} after {seconds:g} s")
            time.sleep(0.2)
            job = self.job(job.id)
        return job

    def check_free(self, name: str) -> str:
        """The ID of the next submission of a name; raises UserError while one lives."""
        same = [job for job in self.jobs() if job.name == name]
        for job in same:
            if job.live:
                raise UserError(
                    f"{name}: is {job.status.lower()} already, as {job.id}, and a second one would write the same folder; "
                    f"follow it with: statten logs {job.id} -f"
                )
        taken = [int(job.id.rpartition("-")[2]) for job in same if job.id.rpartition("-")[2].isdigit()]
        return f"{name}-{max(taken, default=0) + 1}"

    def submit(self, submission: Submission, folder: Path, tell: Callable[[Package], object]) -> str:
        """Pack the working directory and send a job; returns its ID.

        Args:
            submission: what was checked.
            folder: the working directory.
            tell: hears what travels before it is sent.
        """
        id = self.check_free(submission.name)
        with tempfile.TemporaryDirectory(prefix="statten-") as aside:
            package = _packed(submission, folder, Path(aside), self._token, tell)
            environment = {**submission.runtime.environment, SUBMITTED: submission.name}
            runtime: dict[str, Any] = {"working_dir": str(package.file), "env_vars": environment}
            if submission.runtime.install and submission.runtime.packages:
                runtime["pip"] = {"packages": submission.runtime.packages, "pip_check": False}
            with self._plainly():
                return self._client.submit_job(
                    entrypoint=submission.entrypoint, submission_id=id, runtime_env=runtime,
                    metadata={"statten": submission.name},
                )  # fmt: skip


def follow(
    cluster: JobClient,
    job: Job,
    write: Callable[[str], object],
    notice: Callable[[str], object],
    poll: float = POLL_SECONDS,
) -> Job:
    """Write what a job prints until it has ended; a lost connection is taken up again where it was.

    Args:
        job: which.
        write: gets every character of the job's output once.
        notice: gets a sentence when the connection is lost, and when it is back.
        poll: seconds between two looks; more where reading the output takes long.

    Raises:
        Failed: the cluster came back without the job.
    """
    place, lost = 0, False
    while True:
        began = time.monotonic()
        try:
            job = cluster.job(job.id)  # before its output, so that the last look sees all of it
            text = cluster.logs(job.id)
        except Unreachable:
            if not lost:
                notice(LOST.format(cluster.url))
            lost = True
            time.sleep(RETRY_SECONDS)
            continue
        except NoSuchJob:
            raise Failed(_forgotten(cluster, job)) from None
        if lost:
            notice("connected again")
            lost = False
        if len(text) > place:
            write(text[place:])
            place = len(text)
        if not job.live:
            return job
        time.sleep(max(poll, 4 * (time.monotonic() - began)))


def wait(cluster: JobClient, job: Job, notice: Callable[[str], object]) -> Job:
    """Wait until a job has ended."""
    lost = False
    while job.live:
        time.sleep(RETRY_SECONDS if lost else POLL_SECONDS)
        try:
            job = cluster.job(job.id)
        except Unreachable:
            if not lost:
                notice(LOST.format(cluster.url))
            lost = True
            continue
        except NoSuchJob:
            raise Failed(_forgotten(cluster, job)) from None
        lost = False
    return job


def _forgotten(cluster: JobClient, job: Job) -> str:
    return (
        f"{job.id}: {cluster.url} knows this job no longer, for its head was started anew; what is finished is kept in the "
        "storage, and the same job submitted again goes on from there"
    )


def rehearse(submission: Submission, folder: Path, tell: Callable[[Package], object]) -> Package:
    """Pack what would be sent, check that what the job reads is in it, and send nothing."""
    with tempfile.TemporaryDirectory(prefix="statten-") as aside:
        return _packed(submission, folder, Path(aside), read_token(), tell)


def _packed(submission: Submission, folder: Path, aside: Path, token: str | None, tell: Callable[[Package], object]) -> Package:
    package = pack(folder, aside / "working_dir.zip", submission.leave_out, token)
    if problems := list(travelling(package.names, folder, submission.files)):
        raise UserError(problems)
    tell(package)
    return package


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id,
        name=metadata.get("statten") or details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        exit_code=details.driver_exit_code,
        message=(details.message or "").strip(),
        command=details.entrypoint,
        started=_time(details.start_time),
        ended=_time(details.end_time),
    )


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextlib.contextmanager
def _only_address(url: str) -> Iterator[None]:
    """Ray lets these variables win over an address that is given."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def eprint(sentence: str) -> None:
    """A notice between the lines of a job's output."""
    print(f"statten: {sentence}", file=sys.stderr, flush=True)
