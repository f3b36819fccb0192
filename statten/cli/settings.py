"""The commands that show what can be set, and what a recipe sets: recipes, config, fields, model."""

import dataclasses
from typing import Annotated

import typer

from statten.cli.options import (
    Json,
    Recipe,
    Root,
    Set,
    Short,
    app,
    begin,
    load,
    print_json,
    short_forms,
)
from statten.config import Config, config_tree, get_field, load_config, recipe_file, recipe_names, with_short_forms
from statten.config.describe import describe_fields, settings
from statten.display.terminal import numeral, wrapped
from statten.errors import UserError, in_yaml, nearest


def in_force(config: Config) -> Config:
    """The config with what its dataset's folder says, where one is named."""
    if config.auto and config.data.root is not None:
        from statten.data import resolved

        return resolved(config)
    return config


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
@short_forms
def show_config(
    recipe: Recipe,
    overrides: Set = [],  # noqa: B006
    short: Short = {},  # noqa: B006
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not a field's default.")] = False,
    as_json: Json = False,
) -> None:
    """Show every field of a config that is in force, and what set it."""
    begin(as_json, None)
    config = in_force(load(recipe, overrides, short))
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
def model(
    recipe: Recipe,
    overrides: Set = [],  # noqa: B006
    data: Root = None,
    rate: Annotated[float, typer.Option(min=0, max=1, help="Firing rate of every neuron, for SOPs and energy.")] = 0.2,
    as_json: Json = False,
) -> None:
    """Show a config's network without data: layers, parameters, operations, energy, memory."""
    begin(as_json, None)
    config = in_force(load(recipe, overrides, {"data": data}))
    from statten.display import console, table
    from statten.training.footprint import footprint

    found = footprint(config, rate)
    if as_json:
        return print_json(found)
    cells = [
        [row["layer"], " x ".join(map(str, row["reads"])), f"{row['parameters']:,}",
         numeral(row['flops'] / 1e6), numeral(row['operations'] / 1e6), row["unit"]]
        for row in found["layers"]
    ]  # fmt: skip
    console.print(table("", ["layer", "reads", "weights", "M FLOPs", "M ops", ""], cells, right=(2, 3, 4)))
    lines = {
        "parameters": f"{found['parameters'] / 1e6:.3f} M",
        "FLOPs": f"{found['flops'] / 1e6:,.1f} M multiply-accumulates a timestep, if all inputs were dense",
        "operations": f"{found['macs'] / 1e6:,.3f} M MACs, {found['sops'] / 1e6:,.3f} M SOPs a sample (T={found['timesteps']})",
        "energy": f"{numeral(found['energy_uj'])} uJ a sample at firing rate {rate:g}; "
                  f"non-spiking {numeral(found['non_spiking_uj'])} uJ",
        "memory": f"about {found['memory_bytes'] / 2**20:,.0f} MiB to train with batches of {found['batch_size']}",
    }  # fmt: skip
    console.print()
    for name, line in lines.items():
        console.print(f"{name:<11} {line}")
    if guessed := [f"{path} {in_yaml(get_field(config, path))}" for path in found["auto"] if path.startswith("model.")]:
        console.print(wrapped(f"auto, counted as: {', '.join(guessed)}; --data DIR reads the folder"), markup=False)
    return None


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

    for one in found:
        console.print(f"[bold]{one.field}[/]")
        for text in (f"{one.values}; default: {one.default}", one.meaning):
            console.print(wrapped(text, "    "), markup=False)
    return None
