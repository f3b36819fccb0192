"""Write docs/config.md and docs/recipes.md from the docstrings of the fields, the recipes and the job files.

python docs/generate.py            # write them
python docs/generate.py --check    # exit code 1 where they are not what would be written
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from statten.config import RECIPES, Config, ModelConfig, NeuronMap, Part, load_config, recipe_names
from statten.jobs.file import FIELDS, JobFile, Runtime

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the package: change the docstrings there, not this page. -->\n"
NUMBERS = {int: ("whole number", "whole numbers"), float: ("number", "numbers")}
# Said by a function of the field, which no type tells: keep them beside the functions' own sentences.
BY_RULE = {
    "data.validation": "share above 0 and below 0.5, or `test`",
    "data.auto_augment": "timm's name of a policy, or empty",
    "model.pooling": "four digits 0 or 1, as text",
    "scale.workers": "whole number from 1 to 4096, or two as `[min, max]`",
    "space": "text, or a list of texts",
    "scale.neuron_backend": "`auto` or a backend of `statten/registry.py`",
}


def kind(annotation: Any, metadata: Iterable[Any] = (), many: bool = False) -> str:
    """A type with its bounds, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated
        return kind(arguments[0], [*metadata, *annotation.__metadata__], many)
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(f"`{a}`" for a in arguments[:-1]), f"`{arguments[-1]}`"]))
    if origin in (Union, UnionType):
        names = [kind(a, metadata, many) for a in arguments if a is not NoneType]
        return " or ".join(dict.fromkeys(names)) + (", or empty" if NoneType in arguments else "")
    if origin is tuple:
        return f"{('', 'one', 'two', 'three')[len(arguments)]} {kind(arguments[0], metadata, many=True)}"
    if origin is list:
        return f"list of {kind(arguments[0], (), many=True)}"
    if origin is dict:
        return "mapping"
    if annotation in NUMBERS:
        return " ".join(filter(None, [NUMBERS[annotation][many], bounds(metadata)]))
    if annotation is bool:
        return "`true` or `false`"
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return f"mapping of {', '.join(f'`{name}`' for name in annotation.model_fields)}"
    return ("text", "texts")[many] if annotation is str else "anything"


def bounds(metadata: Iterable[Any]) -> str:
    """`from 1 to 64`, `above 0`."""
    found = {key: getattr(m, key) for m in metadata for key in ("ge", "gt", "le", "lt") if hasattr(m, key)}
    if "ge" in found and "le" in found:
        return f"from {found['ge']:g} to {found['le']:g}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[key]} {value:g}" for key, value in found.items())


def cell(text: str) -> str:
    """Text for a table: one line, with no bar that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def default(field: Any) -> str:
    """The default as YAML would write it."""
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "":
        return "empty"
    if isinstance(value, Part):
        return "that of its fields"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in value)}]`"
    if isinstance(value, str) and re.fullmatch(r"[\d.]+", value):
        return f'`"{value}"`'
    if isinstance(value, dict):
        return f"`{value}`"
    return f"`{value:g}`".replace("e-0", "e-") if isinstance(value, float) else f"`{value}`"


def table(part: type[Part], prefix: str = "") -> Iterator[str]:
    """The rows of a part."""
    yield "| field | values | default | what it is |"
    yield "|---|---|---|---|"
    for name, field in part.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        values = BY_RULE.get(path) or kind(field.annotation, field.metadata)
        yield f"| `{path}` | {cell(values)} | {cell(default(field))} | {cell(field.description or '')} |"
    yield ""


def config_page() -> str:
    """docs/config.md."""
    lines = [
        "# Config reference", "", NOTE,
        "Every field of a run. A recipe or a YAML file sets some of them, `--set PATH=VALUE` replaces single ones, the rest",
        "keep their defaults. *Empty* is written `null` in YAML. Some rules tie fields together, such as `model.block_size`,",
        "which is at most `model.timesteps`: a mistake is answered with the rule, your values and the nearest valid choice.",
        "",
        "YAML is read so that numbers are decimal without leading zeros, as in JSON: `3e-4` is a number, `0011` and `yes` are",
        "text. A key that is given twice is an error.", "",
    ]  # fmt: skip
    for name, field in Config.model_fields.items():
        part: Any = field.annotation
        lines += [f"## {name}", "", f"{part.__doc__.strip()}", "", *table(part, f"{name}.")]
        if part is ModelConfig:
            lines += ["### The neuron of each place", "", NeuronMap.__doc__.strip(), "",
                      *table(NeuronMap, "model.neuron.")]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def recipes_page() -> str:
    """docs/recipes.md."""
    lines = [
        "# Recipes and job files", "", NOTE,
        "## Recipes", "",
        "A recipe is a complete config with a name: `statten train NAME`. `statten recipes` lists them too. Ten are those of",
        "the paper; each file in `statten/recipes/` opens with its source, what to expect and what is unknown.", "",
        "| recipe | data | image | T | b | depth | dim | epochs | batch | training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in recipe_names():
        c = load_config(name)
        how = f"{c.train.optimizer}, lr {c.train.lr:g}, {c.train.precision}" + (", TET" if c.train.loss == "tet" else "")
        cells = [f"[`{name}`](#{name})", c.data.name, c.model.image_size, c.model.timesteps, c.model.block_size, c.model.depth,
                 c.model.embed_dim, c.train.total_epochs, c.train.batch_size, how]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for name in recipe_names():
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        head = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines() if line.startswith("#")]
        lines += ["", f"### {name}", "", "```text", *head, "```"]
    lines += [
        "", "## Job files", "",
        "A job file holds a command with everything that it needs. `statten run FILE` runs it here, `statten submit FILE`",
        "sends the same file to a cluster: see [Several workers, several machines](clusters.md). Complete ones lie in `jobs/`.",
        "",
        "```yaml", *(line[4:] for line in (example() or "").splitlines()), "```", "", *table(JobFile),
        "### What must run where", "", Runtime.__doc__ or "", "", *table(Runtime, "runtime."),
        "### Which field belongs to which command", "", "| command | must say | may say |", "|---|---|---|",
    ]  # fmt: skip
    for command, (needed, optional) in FIELDS.items():
        names = [", ".join(f"`{JobFile.model_fields[f].alias or f}`" for f in fields) for fields in (needed, optional)]
        lines.append(f"| `{command}` | {names[0]} | {names[1]} |")
    lines += ["", "`command`, `storage`, `overrides`, `resources`, `runtime` and `retries` may stand in every job file."]
    return "\n".join(lines).rstrip() + "\n"


def example() -> str:
    """The example of a job file that the module's docstring shows."""
    import statten.jobs.file as module

    found = re.search(r"\n\n((?:    .*\n)+)", module.__doc__ or "")
    return found[1] if found else ""


PAGES = {"config.md": config_page, "recipes.md": recipes_page}


def main() -> int:
    """Write the pages, or say which are stale."""
    stale = [name for name, page in PAGES.items() if not _holds(HERE / name, page())]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/{name} is stale: run python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(PAGES[name](), encoding="utf-8")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
