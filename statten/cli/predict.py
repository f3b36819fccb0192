"""The command that uses a trained model: predict."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statten.cli.options import Ema, Evaluated, Json, OnData, Set, Storage, app, begin, print_json
from statten.errors import UserError, user_path

if TYPE_CHECKING:
    from statten.prediction import Predictions, TrainedModel

FILE = 28
"""Characters of a file's path that the table shows, so that it fits 80 columns."""


@app.command()
def predict(
    target: Evaluated,
    files: Annotated[list[str], typer.Argument(metavar="FILES", help="Images or event clips, or folders of them.")],
    overrides: Set = [],  # noqa: B006
    top_k: Annotated[int, typer.Option(min=1, help="Show so many classes, the most probable first.")] = 1,
    confidence: Annotated[
        float | None, typer.Option(help="Answer at the end of the first block of timesteps that is so sure, from 0 to 1.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that run together.")] = 64,
    data: OnData = None,
    ema: Ema = True,
    storage: Storage = None,
    output: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="DIR", help="New folder for predictions.json and predictions.csv."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout, everything else on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Say what images or event clips show, with a trained model."""
    if as_csv and as_json:
        raise UserError("--csv: stdout takes one document, but --json is given too; --output DIR has both as files")
    folder = begin(as_json or as_csv, storage)
    from rich.markup import escape

    from statten.display import console, progress_bar, table
    from statten.files import check_writable
    from statten.prediction import load_model
    from statten.prediction.inputs import files_of

    if output is not None:
        if output.exists():
            raise _exists(output)
        check_writable(output.parent, "name another --output")
    model = load_model(target, overrides, data=data, ema=ema, storage=folder)
    paths, k = files_of(files, model.config.model), min(top_k, len(model.classes))
    with progress_bar("samples") as bar:
        task = bar.add_task(f"{len(paths)} files", total=len(paths), rate="")
        found = model.predict_each(
            paths, batch_size=batch_size, confidence=confidence, step=lambda samples: bar.advance(task, samples)
        )
    document, lines = _document(model, found, confidence, k), _csv(found, k)
    if output is not None:
        _write(output, document, lines)
    if as_json:
        return print_json(document)
    if as_csv:
        return print(lines, end="")
    columns, cells = found.table(k)
    shown = [[_end(file), *map(escape, others)] for file, *others in cells]
    made = table("", columns, shown, right=(2, len(columns) - 2, len(columns) - 1))
    made.columns[0].no_wrap = True
    console.print(made)
    console.print(f"\n{_summary(model, found)}", markup=False)
    return console.print(f"written to {output}", markup=False) if output is not None else None


def _end(file: str) -> str:
    """The end of a path, which tells it from others, as rich prints it."""
    from rich.markup import escape

    return escape(file if len(file) <= FILE else f"…{file[1 - FILE :]}")


def _exists(output: Path) -> UserError:
    return UserError(f"{output}: exists already; name a new folder with --output")


def _document(model: "TrainedModel", found: "Predictions", confidence: float | None, k: int) -> dict[str, Any]:
    m = model.config.model
    return {
        "target": model.name, "checkpoint": str(model.source), "classes": model.classes, "timesteps": m.timesteps,
        "block_size": m.block_size, "confidence": confidence, "samples": len(found),
        "average_timesteps": found.average_timesteps, "energy_uj": found.energy_uj,
        "predictions": [prediction.document(k) for prediction in found],
    }  # fmt: skip


def _csv(found: "Predictions", k: int) -> str:
    from statten.prediction.results import columns_csv, rows_csv

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns_csv(k), *rows_csv(found, k)])
    return text.getvalue()


def _write(output: Path, document: dict[str, Any], lines: str) -> None:
    from statten.files import new_folder, write_json, write_text

    try:
        with new_folder(output) as aside:
            write_json(aside / "predictions.json", document)
            write_text(aside / "predictions.csv", lines)
    except FileExistsError:
        raise _exists(output) from None


def _summary(model: "TrainedModel", found: "Predictions") -> str:
    m = model.config.model
    kind = "event clip" if m.events else "image"
    return (
        f"{len(found)} {kind}{'s' if len(found) > 1 else ''}, {found.average_timesteps:.3g} of {m.timesteps} timesteps and "
        f"{found.energy_uj:.4g} uJ each, by {model.name} (b={m.block_size}, {len(model.classes)} classes)"
    )
