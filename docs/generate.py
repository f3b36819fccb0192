"""Write docs/config.md and docs/recipes.md from the docstrings of the fields, the recipes and the job files.

python docs/generate.py            # write them
python docs/generate.py --check    # exit code 1 where they are not what would be written
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from statten.config import RECIPES, Config, ModelConfig, NeuronMap, Part, config_tree, load_config, recipe_names
from statten.config.describe import allowed, default
from statten.jobs.file import FIELDS, JobFile, Runtime

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the package: change the docstrings there, not this page. -->\n"
# Said by a function of the field, which no type tells: keep it beside the function's own sentence.
BY_RULE = {"space": "text, or a list of texts"}


def cell(text: str) -> str:
    """Text for a table: one line, with no bar that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def table(part: type[Part], prefix: str = "") -> Iterator[str]:
    """The rows of a part."""
    yield "| field | values | default | what it is |"
    yield "|---|---|---|---|"
    for name, field in part.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        values = BY_RULE.get(path) or allowed(path, field)
        yield f"| `{path}` | {cell(values)} | {cell(default(field))} | {cell(field.description or '')} |"
    yield ""


def config_page() -> str:
    """docs/config.md."""
    lines = [
        "# Config reference", "", NOTE,
        "Every field of a run. A recipe or a YAML file sets some of them, `--set PATH=VALUE` replaces single ones, the rest",
        "keep their defaults. `statten fields WORD` shows the same on the terminal, `statten config RECIPE` what is in force",
        "and what set it. `auto` is read from the dataset's folder before the run: see [Your own data](data.md). *Empty* is",
        "written `null` in YAML. Some rules tie fields together, such as `model.block_size`, which is at most",
        "`model.timesteps`: a mistake is answered with the rule, your values and the nearest valid choice.", "",
        "YAML is read so that numbers are decimal without leading zeros, as in JSON: `3e-4` is a number, `0011` and `yes` are",
        "text. A key that is given twice is an error.", "",
    ]  # fmt: skip
    for name, field in Config.model_fields.items():
        part: Any = field.annotation
        lines += [f"## {name}", "", inspect.getdoc(part) or "", "", *table(part, f"{name}.")]
        if part is ModelConfig:
            lines += ["### The neuron of each place", "", inspect.getdoc(NeuronMap) or "", "",
                      *table(NeuronMap, "model.neuron.")]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def recipes_page() -> str:
    """docs/recipes.md."""
    lines = [
        "# Recipes and job files", "", NOTE,
        "## Recipes", "",
        "A recipe is a complete config with a name: `statten train NAME`. `statten recipes` lists them too. Ten are those of",
        "the paper, the others are published settings of its [backbones](backbones.md); each file in",
        "`statten/recipes/` opens with its source, what to expect and what is unknown.", "",
        "| recipe | data | image | T | b | depth | dim | epochs | batch | training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in recipe_names():
        c = load_config(name)
        how = f"{c.train.optimizer}, lr {c.train.lr:g}, {c.train.precision}" + (", TET" if c.train.loss == "tet" else "")
        size = config_tree(c)["model"]["image_size"]
        cells = [f"[`{name}`](#{name})", c.data.name, size, c.model.timesteps, c.model.block_size, c.model.depth,
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
