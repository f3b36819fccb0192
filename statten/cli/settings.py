"""The commands that show what can be set, and what a recipe sets: recipes, config, fields."""

import dataclasses
from typing import Annotated

import typer

from statten.cli.options import (
    BatchSize,
    Epochs,
    Json,
    Lr,
    Recipe,
    Root,
    Set,
    Workers,
    app,
    begin,
    load,
    print_json,
)
from statten.config import config_tree, load_config, recipe_file, recipe_names, with_short_forms
from statten.config.describe import describe_fields, settings
from statten.errors import UserError, in_yaml, nearest


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this recipe's file.")] = None, as_json: Json = False
) -> None:
    """List the bundled recipes, or show one."""
    begin(as_json, None)
    from statten.display import console, table

    if name is not None and name not in recipe_names():
        raise UserError(f"no recipe is called {name!r}; {nearest(name, recipe_names())}")
    rows = {each: load_config(each) for each in ([name] if name else recipe_names())}
    if as_json:
        return print_json({each: config_tree(config, "json") for each, config in rows.items()})
    if name is not None:
        return print(recipe_file(name).read_text(encoding="utf-8"), end="")
    columns = ["recipe", "data", "image", "T", "b", "depth", "dim", "epochs", "batch"]
    cells = [
        [each, c.data.name, config_tree(c)["model"]["image_size"], c.model.timesteps, c.model.block_size, c.model.depth,
         c.model.embed_dim, c.train.total_epochs, c.train.batch_size]
        for each, c in rows.items()
    ]  # fmt: skip
    return console.print(table("", columns, cells, right=range(2, 9)))


@app.command("config")
def show_config(
    recipe: Recipe,
    overrides: Set = [],  # noqa: B006
    data: Root = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    workers: Workers = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not a field's default.")] = False,
    as_json: Json = False,
) -> None:
    """Show every field of a config that is in force, and what set it."""
    begin(as_json, None)
    short = {"data": data, "epochs": epochs, "batch_size": batch_size, "lr": lr, "workers": workers}
    config = load(recipe, overrides, **short)
    if config.auto and config.data.root is not None:
        from statten.data import resolved

        config = resolved(config)
    rows = settings(recipe, with_short_forms(overrides, short), config)
    if changed:
        rows = [row for row in rows if row.differs]
    if as_json:
        return print_json(
            [{"field": row.field, "value": row.value, "from": row.origin, "differs": row.differs} for row in rows]
        )
    from statten.display import console, table

    cells = [["*" if row.differs else "", row.field, in_yaml(row.value), row.origin] for row in rows]
    console.print(table("", ["", "field", "value", "from"], cells), markup=False)
    return console.print("* is not the field's default; what a field means: statten fields NAME")


@app.command()
def fields(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="A field, a part of its name or what others call it; or like *.lr*.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Say what fields are called, what they may be and what they do."""
    begin(as_json, None)
    found = describe_fields(pattern)
    if as_json:
        return print_json([dataclasses.asdict(one) for one in found])
    from statten.display import console
    from statten.display.terminal import wrapped

    for one in found:
        console.print(f"[bold]{one.field}[/]")
        for text in (f"{one.values}; default: {one.default}", one.meaning):
            console.print(wrapped(text, "    "), markup=False)
    return None
