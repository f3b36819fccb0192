"""What fields are, in words, and what a config sets: for `statten fields`, `statten config` and docs/config.md."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from statten.config.loading import build_config, config_tree, parse_overrides, recipe_file
from statten.config.parts import Part
from statten.config.paths import field_at, field_paths, fields_called, nearest_field
from statten.config.reading import read_yaml
from statten.config.schema import AUTO_FIELDS, Config
from statten.errors import UserError

NUMBERS = {int: ("whole number", "whole numbers"), float: ("number", "numbers")}
# Said by a function of the field, which no type tells: keep them beside the functions' own sentences.
BY_RULE = {
    "data.validation": "share above 0 and below 0.5, or `test`",
    "data.auto_augment": "timm's name of a policy, or empty",
    "model.pooling": "four digits 0 or 1, as text",
    "scale.workers": "whole number from 1 to 4096, or two as `[min, max]`",
    "scale.neuron_backend": "`auto` or a backend of `statten/registry.py`",
}


@dataclass(frozen=True)
class FieldHelp:
    """A field of the config in words."""

    field: str
    """Its dotted path."""
    values: str
    """What it may be."""
    default: str
    """What it is where nothing says otherwise."""
    meaning: str
    """What it does."""


@dataclass(frozen=True)
class Setting:
    """A field of a config that is in force."""

    field: str
    """Its dotted path."""
    value: Any
    """Plain; `auto` where the folder of the dataset was not asked."""
    origin: Literal["default", "recipe", "--set", "auto"]
    """What set it: `auto` is the folder of the dataset."""
    differs: bool
    """Whether it is not the field's default."""


def describe_fields(pattern: str = "") -> list[FieldHelp]:
    """The fields whose path holds a pattern (with * or ?: is like it), or which are called so elsewhere, or else whose meaning
    holds it; raises UserError where there is none.
    """
    every, word = [_help(path) for path in field_paths()], pattern.lower()
    if set(word) & set("*?"):
        found = [one for one in every if fnmatch.fnmatchcase(one.field, word)]
    else:
        called = fields_called(word)
        found = [one for one in every if word in one.field or one.field in called]
        found = found or [one for one in every if word in one.meaning.lower()]
    if not found:
        raise UserError(f"{pattern!r}: no field is called so, and none speaks of it; {nearest_field(pattern)}")
    return found


def _help(path: str) -> FieldHelp:
    field = field_at(path)
    return FieldHelp(path, *(_plain(text) for text in (allowed(path, field), default(field), field.description or "")))


def _plain(markdown: str) -> str:
    return " ".join(markdown.replace("`", "").split())


def settings(
    source: str | Path, overrides: Iterable[str] | Mapping[str, Any] = (), in_force: Config | None = None
) -> list[Setting]:
    """Every field of a recipe with overrides on top, and what set it.

    Args:
        source: as in `load_config`.
        overrides: as in `load_config`.
        in_force: the same config after its dataset's folder was asked; None shows `auto`.

    Raises:
        ConfigError: as `load_config` does.
    """
    tree, overridden = read_yaml(recipe_file(source)), [_field_of(path) for path in parse_overrides(overrides)]
    config = build_config(tree, overrides, source=str(source))
    plain, defaults = config_tree(in_force or config, "json"), Config().model_dump(mode="json")
    found = []
    for path in field_paths():
        part, name = path.split(".")
        origin: Any = "--set" if path in overridden else "recipe" if name in (tree.get(part) or {}) else "default"
        value = plain[part][name]
        found.append(Setting(path, value, "auto" if path in config.auto else origin, value != defaults[part][name]))
    return found


def _field_of(path: str) -> str:
    """model.neuron.mlp is of the field model.neuron."""
    return ".".join(path.split(".")[:2])


# A field's type, bounds and default in words, with Markdown's marks for code.


def allowed(path: str, field: Any) -> str:
    """What a field may be."""
    values = BY_RULE.get(path) or kind(field.annotation, field.metadata)
    return f"{values}, or `auto`" if path in AUTO_FIELDS else values


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
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {kind(arguments[0], (), many=True)}"
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
