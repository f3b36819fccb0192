"""The command line's application, the options that several commands share, and where a new folder goes."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

import statten
from statten.cli.stopping import Stopped
from statten.config import Config, field_paths, load_config, recipe_names, with_short_forms
from statten.errors import UserError, user_path
from statten.jobs.file import SUBMITTED, check_submitted_storage
from statten.registry import DATASETS
from statten.storage.run import default_storage, storage_folder
from statten.storage.store import working_copy

GROUPS = {
    "Train and search": ("train", "tune", "supernet", "promote", "resume", "extend", "run", "demo"),
    "Settings": ("recipes", "config", "fields", "model"),
    "What is there": ("runs", "show", "best", "report"),
    "Measure and use": ("evaluate", "predict", "anytime", "grid", "compare", "export", "energy"),
    "Data and machine": ("data", "doctor", "bench"),
    "Clusters": ("submit", "jobs", "status", "logs", "stop", "wait"),
}
"""Commands as --help shows them; one that is in no group comes last."""


class Commands(TyperGroup):
    """All commands, in groups; one that a signal stops says how to go on, where typer would end without a word."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each command's first sentences, whole: typer's own list cuts them off."""
        grouped = {name for names in GROUPS.values() for name in names}
        others = {"Others": tuple(name for name in self.commands if name not in grouped)}
        width = max(map(len, self.commands))
        for title, names in {**GROUPS, **others}.items():
            rows = [
                (name.ljust(width), " ".join((self.commands[name].help or "").partition("\n\n")[0].split()))
                for name in names
                if name in self.commands
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            raise Stopped(error) from None


app = typer.Typer(
    name="statten",
    cls=Commands,
    help="Train spiking vision transformers with spatial-temporal attention, and search their architecture on Ray.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"statten {statten.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What stands before the command."""


def _beginning(words: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A shell's completion: those of some words that begin so."""
    return lambda incomplete: [word for word in words() if word.startswith(incomplete)]


def _stored() -> list[str]:
    folder = default_storage()
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


Recipe = Annotated[
    str,
    typer.Argument(help="A recipe's name (see `statten recipes`) or a YAML file.", autocompletion=_beginning(recipe_names)),
]
Target = Annotated[
    str, typer.Argument(help="Name of a run or sweep in the storage, or a path.", autocompletion=_beginning(_stored))
]
Evaluated = Annotated[
    str,
    typer.Argument(
        help="Run or sweep (name or path), checkpoint, export, or published .pth.tar.", autocompletion=_beginning(_stored)
    ),
]
OnData = Annotated[str | None, typer.Option(metavar="NAME", help="Dataset; default: the one of the run.")]
Ema = Annotated[bool, typer.Option("--ema/--no-ema", help="Take averaged weights where there are some.")]
Set = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a field, e.g. model.depth=4.",
        autocompletion=_beginning(lambda: [f"{path}=" for path in field_paths()]),
    ),
]  # fmt: skip
Root = Annotated[str | None, typer.Option("--data", metavar="DIR", help="Folder of the dataset: data.root.")]
Name = Annotated[str | None, typer.Option(help="Name of the new folder; default: one of the recipe or target.")]
Storage = Annotated[
    Path | None,
    typer.Option(
        parser=working_copy, metavar="FOLDER|URI", help="Folder or URI of all runs; default: $STATTEN_STORAGE, else ./runs."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, everything else on stderr.")]
Data = Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset, as in data.name.")]
DataFolder = Annotated[Path, typer.Option(parser=user_path, metavar="FOLDER", help="Folder of the dataset, as in data.root.")]
Threads = Annotated[int | None, typer.Option("--workers", min=1, help="Threads; default: one for each core.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and start nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run or sweep of this name and config was.")]


Short = Mapping[str, Any]
"""What a command was given in short forms, by the keys of SHORT_FORMS; what was left out is None."""
SHORT_OPTIONS = {
    "data": Root,
    "epochs": Annotated[int | None, typer.Option(metavar="N", help="Epochs: train.epochs.")],
    "batch_size": Annotated[int | None, typer.Option(metavar="N", help="Samples per step: train.batch_size.")],
    "lr": Annotated[float | None, typer.Option(metavar="RATE", help="Peak learning rate: train.lr.")],
    "workers": Annotated[str | None, typer.Option(metavar="N", help="Training workers: scale.workers.")],
}


def short_forms(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of SHORT_OPTIONS in the place of its parameter `short`, which gets them as one mapping."""

    @functools.wraps(command)
    def typed(**given: Any) -> Any:
        short = {name: given.pop(name) for name in SHORT_OPTIONS}
        return command(**given, short=short)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        names = SHORT_OPTIONS if parameter.name == "short" else {}
        more = [inspect.Parameter(n, parameter.kind, default=None, annotation=kind) for n, kind in names.items()]
        parameters += more or [parameter]
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    hints = get_type_hints(command, include_extras=True)
    typed.__annotations__ = {name: hint for name, hint in hints.items() if name != "short"} | SHORT_OPTIONS
    return typed


def check_data_option(short: Short, config: Config) -> None:
    """Raise UserError where --data names a folder for a dataset that has none."""
    if short.get("data") is not None and DATASETS[config.data.name].bundled:
        raise UserError(
            f"--data: has no effect on {config.data.name}, which comes with the package; for your own images use the recipe "
            f"image_folder, for event clips event_folder"
        )


def load(recipe: str, overrides: list[str], short: Short) -> Config:
    """The config of a recipe with overrides and short forms on top; raises UserError."""
    config = load_config(recipe, with_short_forms(overrides, short))
    check_data_option(short, config)
    return config


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
