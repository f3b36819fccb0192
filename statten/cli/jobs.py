"""The commands for jobs on a cluster: submit, jobs, status, logs, stop, wait."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from statten.errors import UserError, in_shell, nearest, user_path

jobs_app = typer.Typer(rich_markup_mode=None)

NOT_SUBMITTED = ("submit", "jobs", "status", "logs", "stop", "wait", "doctor", "demo")
Address = Annotated[
    str | None, typer.Option(metavar="URL", help="Dashboard; default: $RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="ID or name of a job; a name means its latest submission.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, everything else on stderr.")]


@jobs_app.command()
def submit(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="JOB | -- COMMAND ...", help="A job file, or a command after `--`.")],
    address: Address = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field of a job file's config.")
    ] = [],  # noqa: B006 - typer copies it
    name: Annotated[str | None, typer.Option(help="Name of the job and its folder; default: its own, or the file's.")] = None,
    storage: Annotated[str | None, typer.Option(help="Folder of all runs, which the cluster's machines see.")] = None,
    folder: Annotated[
        Path,
        typer.Option("--working-dir", parser=user_path, metavar="FOLDER", help="Folder that travels; default: this one."),
    ] = Path(),
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, send nothing.")] = False,
) -> None:
    """Send a job to a Ray cluster; the same job again goes on where it was."""
    from statten.jobs.client import JobClient, rehearse
    from statten.jobs.submit import from_command, from_file

    if len(words) == 1 and (words[0].endswith((".yaml", ".yml")) or user_path(words[0]).is_file()):
        checked = from_file(user_path(words[0]), folder, overrides, name, storage)
    else:
        if overrides or name or storage:
            raise UserError("--set, --name and --storage of a plain command stand behind `--`, among its own options")
        command, parameters = _parse(context, words)
        checked = from_command(words, command, parameters)
    shown = sys.stderr if as_json else sys.stdout

    def tell(package: Any) -> None:
        print(f"working directory: {len(package.names)} files of {folder.resolve()}, {package.size} packed", file=shown)
        if package.secrets:
            print(f"left at home, as secrets: {', '.join(package.secrets)}", file=shown)

    if dry_run:
        package = rehearse(checked, folder, tell)
        document = {
            "name": checked.name,
            "entrypoint": checked.entrypoint,
            "files": list(package.names),
            "bytes": package.bytes,
        }
        return _print(document) if as_json else print(f"{checked.entrypoint}\nNothing was sent.")
    cluster = JobClient(address)
    id = cluster.submit(checked, folder, tell)
    if as_json:
        return _print({"id": id, "name": checked.name, "address": cluster.url, "entrypoint": checked.entrypoint})
    option = f" --address {in_shell(address)}" if address else ""
    print(f"submitted {id}")
    print(f"  follow it  statten logs {id} -f{option}")
    return print(f"  stop it    statten stop {id}{option}")


@jobs_app.command()
def jobs(address: Address = None, as_json: Json = False) -> None:
    """List a cluster's jobs."""
    from statten.jobs.client import JobClient

    cluster = JobClient(address)
    found = [job for job in cluster.jobs() if not job.probe]
    if as_json:
        return _print([dataclasses.asdict(job) for job in found])
    if not found:
        return print(f"{cluster.url} has no jobs; send one with: statten submit jobs/digits.yaml")
    cells = [[job.id, job.status, _code(job.exit_code), _minute(job.started), _minute(job.ended)] for job in found]
    # Not a table that is fitted to the terminal: an ID is there to be copied, whole.
    lines = [["job", "status", "exit code", "started", "ended"], *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for job, state, exit_code, *times in lines:
        texts = [job.ljust(widths[0]), state.ljust(widths[1]), exit_code.rjust(widths[2])]
        print("  ".join([*texts, *(time.ljust(width) for time, width in zip(times, widths[3:], strict=True))]).rstrip())
    return None


@jobs_app.command()
def status(id: Id, address: Address = None, as_json: Json = False) -> None:
    """Say how a job is."""
    from statten.jobs.client import JobClient

    job = JobClient(address).find(id)
    if as_json:
        return _print(dataclasses.asdict(job))
    return print(f"{job.id}  {job.status}{_ending(job)}\n  command  {job.command}")


@jobs_app.command()
def logs(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job has ended; Ctrl-C leaves it alone.")] = False,
    address: Address = None,
) -> None:
    """Print what a job has printed."""
    from statten.jobs import client

    cluster = client.JobClient(address)
    job = cluster.find(id)
    if not follow:
        return _write(cluster.logs(job.id))
    try:
        job = client.follow(cluster, job, _write, client.eprint)
    except KeyboardInterrupt:
        return client.eprint(f"detached; {job.id} goes on. Come back with: {_again('logs', job, address)} -f")
    return client.eprint(f"{job.id} has ended: {job.status}{_ending(job)}")


@jobs_app.command()
def stop(id: Id, address: Address = None, as_json: Json = False) -> None:
    """Stop a job; what it finished is kept, and the same job submitted again goes on from there."""
    from statten.jobs.client import JobClient

    began = time.monotonic()
    job = JobClient(address).stop(id)
    if as_json:
        return _print({**dataclasses.asdict(job), "seconds": time.monotonic() - began})
    return print(f"{job.id}  {job.status}{_ending(job)}")


@jobs_app.command()
def wait(id: Id, address: Address = None, as_json: Json = False) -> None:
    """Wait until a job has ended, and end with its exit code."""
    from statten.jobs import client

    cluster = client.JobClient(address)
    job = cluster.find(id)
    try:
        job = client.wait(cluster, job, client.eprint)
    except KeyboardInterrupt:
        client.eprint(f"detached; {job.id} goes on. Come back with: {_again('wait', job, address)}")
        raise typer.Exit(1) from None
    if as_json:
        _print(dataclasses.asdict(job))
    else:
        print(f"{job.id}  {job.status}{_ending(job)}")
    raise typer.Exit(job.code)


# ---------------------------------------------------------------------------------------------------------------------


def _parse(context: typer.Context, words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that some words are and its parameters, parsed as if they had been typed; nothing is run."""
    parent: Any = context.find_root()
    group: Any = parent.command
    if words[0] in NOT_SUBMITTED:
        raise UserError(f"{words[0]}: is no command for a cluster; it runs here")
    if words[0] == "run":
        raise UserError("run: submit the job file itself: statten submit jobs/FILE.yaml")
    if words[0] not in group.commands:
        choices = sorted(set(group.commands) - set(NOT_SUBMITTED))
        raise UserError(f"{words[0]}: no such command or job file; {nearest(words[0], choices)}")
    rest, command = words, group
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(parent, rest)
        parent = parent if hasattr(command, "resolve_command") else command.make_context(name, list(rest), parent=parent)
    return words[0], parent.params


def _print(document: Any) -> None:
    print(json.dumps(document, indent=1))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _again(command: str, job: Any, address: str | None) -> str:
    return f"statten {command} {job.id}" + (f" --address {in_shell(address)}" if address else "")


def _code(code: int | None) -> str:
    return "" if code is None else str(code)


def _minute(time: str | None) -> str:
    return (time or "")[:16].replace("T", " ")


def _ending(job: Any) -> str:
    """What to add to a status: the exit code, or why there is none."""
    if job.status != "FAILED":
        return ""
    if job.exit_code is not None:
        return f", exit code {job.exit_code}"
    return f", {job.message.splitlines()[0]}" if job.message else ""
