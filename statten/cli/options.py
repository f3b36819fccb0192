"""The command line's application, the options that several commands share, and where a new folder goes."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from statten.cli.stopping import Stopped
from statten.errors import user_path
from statten.jobs.file import SUBMITTED, check_submitted_storage
from statten.storage.run import storage_folder
from statten.storage.store import working_copy


class Commands(TyperGroup):
    """All commands; one that a signal stops says how to go on, where typer would end without a word."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            raise Stopped(error) from None


app = typer.Typer(
    name="statten",
    cls=Commands,
    help="Train spiking vision transformers with spatial-temporal attention, and search their architecture on Ray.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Recipe = Annotated[str, typer.Argument(help="A recipe's name (see `statten recipes`) or a YAML file.")]
Target = Annotated[str, typer.Argument(help="Name of a run or sweep in the storage, or a path.")]
Evaluated = Annotated[str, typer.Argument(help="Run or sweep (name or path), checkpoint, export, or published .pth.tar.")]
OnData = Annotated[str | None, typer.Option(metavar="NAME", help="Dataset; default: the one of the run.")]
Ema = Annotated[bool, typer.Option("--ema/--no-ema", help="Take averaged weights where there are some.")]
Set = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. model.depth=4.")]
Name = Annotated[str | None, typer.Option(help="Name of the new folder; default: the recipe's name and a number.")]
Storage = Annotated[
    Path | None,
    typer.Option(
        parser=working_copy, metavar="FOLDER|URI", help="Folder or URI of all runs; default: $STATTEN_STORAGE, else ./runs."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, everything else on stderr.")]
Data = Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset, as in data.name.")]
Root = Annotated[Path, typer.Option(parser=user_path, metavar="FOLDER", help="Folder of the dataset, as in data.root.")]
Threads = Annotated[int | None, typer.Option("--workers", min=1, help="Threads; default: one for each core.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and start nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run or sweep of this name and config was.")]


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=1))


def begin(as_json: bool, storage: Path | None) -> Path:
    from statten import display

    if as_json:
        display.use_stderr()
    folder = storage_folder(storage)
    if SUBMITTED in os.environ:
        check_submitted_storage(folder)
    return folder


def stem(recipe: str) -> str:
    return Path(recipe).stem
