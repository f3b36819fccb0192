"""A recipe or file, overrides on top, every rule checked at once: a frozen `Config`, or a sentence for each mistake."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from statten.config.model import NeuronMap
from statten.config.parts import Part
from statten.config.paths import field_at, fields_meant, is_text, nearest_field, part_of
from statten.config.reading import dump_yaml, file_keys, parse_yaml, read_yaml
from statten.config.schema import AUTO_AUGMENT, AUTO_FIELDS, Config
from statten.errors import ConfigError, broken_rule, nearest, shown, user_path

RECIPES = Path(__file__).parents[1] / "recipes"
SHORT_FORMS = {
    "data": "data.root", "epochs": "train.epochs", "batch_size": "train.batch_size", "lr": "train.lr",
    "workers": "scale.workers", "trials": "search.trials", "hours": "search.max_hours", "total_epochs": "search.max_epochs",
}  # fmt: skip
"""Options of commands that are a field each."""
P = TypeVar("P", bound="Part")


# Loading, overriding, dumping.


def recipe_names() -> list[str]:
    """Names of the bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(source: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Load a recipe (by name) or a YAML file, apply overrides, check every rule.

    Args:
        source: name of a bundled recipe, or path of a YAML file with the parts data, model, train, scale, search, log.
        overrides: `["model.depth=4", ...]` (values in YAML) or `{"model.depth": 4, ...}`.

    Returns:
        A frozen `Config`; its `replace` gives changed copies.

    Raises:
        ConfigError: with one sentence for each mistake.

    Example:
        >>> import statten
        >>> config = statten.load_config("digits", {"model.depth": 4})
        >>> config.model.depth
        4
    """
    return build_config(read_yaml(recipe_file(source)), overrides, source=str(source))


def recipe_file(source: str | Path) -> Path:
    """The file that a recipe's name, or a path, means; raises ConfigError."""
    if str(source) in recipe_names():
        return RECIPES / f"{source}.yaml"
    path = user_path(source)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"no recipe or file is called {str(source)!r}; {nearest(str(source), recipe_names())}")
    return path


def build_config(tree: Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any] = (), source: str = "") -> Config:
    """Validate a nested mapping with overrides on top; raises ConfigError with all mistakes at once."""
    tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    tree.update({part: {} for part in Config.model_fields if tree.get(part) is None})
    problems = []
    for path, value in parse_overrides(overrides).items():
        try:
            field_at(path)
        except ConfigError as error:
            problems += [f"--set {problem}" for problem in error.problems]
            continue
        part, _, rest = path.partition(".")
        node = tree[part]
        if isinstance(node, dict):
            keys = rest.split(".")
            for key in keys[:-1]:
                child = node.get(key)
                node[key] = dict(child) if isinstance(child, Mapping) else {}
                node = node[key]
            node[keys[-1]] = value
    auto = _take_auto(tree)
    problems += [f"{source}: {p}" if source else p for p in _validate(tree)]
    if problems:
        raise ConfigError(problems)
    config = Config.model_validate(tree)
    config._auto = auto
    return config


def _take_auto(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Take the fields that say auto, and may, out of a tree of the parts."""
    taken = []
    for path in AUTO_FIELDS:
        part, _, name = path.partition(".")
        if isinstance(tree[part], dict) and tree[part].get(name) == "auto":
            del tree[part][name]
            taken.append(path)
    return tuple(taken)


def config_tree(config: Config, mode: str = "python") -> dict[str, Any]:
    """A config as nested mappings, with `auto` where it says so; mode `json` has plain values alone."""
    tree = config.model_dump(mode=mode)
    for path in config.auto:
        part, _, name = path.partition(".")
        tree[part][name] = "auto"
    return tree


def parse_overrides(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """`["model.depth=4"]` to `{"model.depth": 4}`; a mapping passes through."""
    if isinstance(overrides, Mapping):
        return dict(overrides)
    parsed, problems = {}, []
    for item in overrides:
        path, equals, text = item.partition("=")
        if not equals or not path:
            problems.append(f"--set takes PATH=VALUE such as model.depth=4, but got {item!r}")
            continue
        path, value = path.strip(), parse_yaml(text, f"--set {path}")
        # 1111 is a number to YAML, but four digits to model.pooling.
        parsed[path] = text.strip() if isinstance(value, int | float) and is_text(path) else value
    if problems:
        raise ConfigError(problems)
    return parsed


def with_short_forms(overrides: Iterable[str] | Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides, and those that were given in a short form, as one mapping.

    Args:
        overrides: as in `load_config`.
        given: value of each short form, by its key in SHORT_FORMS; None where it was left out. Text is read as --set reads it.

    Raises:
        ConfigError: both name a field, with different values.
    """
    found, problems = parse_overrides(overrides), []
    for name, value in given.items():
        if value is None:
            continue
        path, option = SHORT_FORMS[name], f"--{name.replace('_', '-')}"
        value = parse_overrides([f"{path}={value}"])[path] if isinstance(value, str) and not is_text(path) else value
        if found.setdefault(path, value) != value:
            problems.append(
                f"{option}: is {path}, but got ({option} {value}, --set {path}={shown(found[path])}); leave one of them out"
            )
    if problems:
        raise ConfigError(problems)
    return found


def with_overrides(config: Config, overrides: Iterable[str] | Mapping[str, Any]) -> Config:
    """A copy with some fields replaced and every rule checked again."""
    return build_config(config_tree(config), overrides)


def dump_config(config: Config) -> str:
    """YAML text that `load_config` reads back to an equal config."""
    return dump_yaml(config_tree(config, "json"))


def _validate(tree: Mapping[str, Any]) -> list[str]:
    """One sentence for every mistake: of single fields, between the fields of a part, between parts."""
    parts: dict[str, Part] = {}
    problems = [f"{key}: no such part; {_nearest_part(str(key))}" for key in tree if key not in Config.model_fields]
    wrong: set[str] = set()  # dotted paths of fields with a mistake of their own
    for name, field in Config.model_fields.items():
        value = tree[name]
        if not isinstance(value, Mapping):
            problems.append(f"{name}: must be a mapping of fields, but got {shown(value)}")
            wrong.add(name)
            continue
        part, sentences, keys = validate_part(field.annotation, value, name)  # type: ignore[arg-type]
        problems += sentences
        if part is not None:
            parts[name] = part
        wrong |= {f"{name}.{key}" for key in keys}
    if len(parts) == len(Config.model_fields):
        try:
            Config.model_validate(parts)
        except ValidationError as error:
            for detail in error.errors():
                problems += [s for s in _sentences(detail, "", Config) if not any(path in s for path in wrong)]
    return list(dict.fromkeys(problems))


def _nearest_part(key: str) -> str:
    """The part that a key of a file may mean, or the field, which belongs into one."""
    near = nearest(key, Config.model_fields)
    return near if near.startswith("did you mean") or not fields_meant(key) else nearest_field(key)


def validate_part(part: type[P], tree: Mapping[str, Any], name: str = "") -> tuple[P | None, list[str], list[str]]:
    """The object, if one can be made; a sentence for every mistake; the names of fields with a mistake of their own."""
    problems: list[str] = []
    sound, keys = dict(tree), list[str]()
    for _ in range(2):  # once as given, once without the wrong fields, so that rules between the others are checked too
        try:
            return part.model_validate(sound), problems, keys
        except ValidationError as error:
            dropped = set(keys)  # a field that was dropped may be missed now: its own mistake is said already
            for detail in error.errors():
                if not dropped.intersection(map(str, detail["loc"][:1])):
                    problems += [s for s in _sentences(detail, name, part) if not any(f"`{k}`" in s for k in keys)]
                    keys += [str(key) for key in detail["loc"][:1]]
            sound = {k: v for k, v in sound.items() if k not in keys}
    return None, list(dict.fromkeys(problems)), keys


def _sentences(error: ErrorDetails, prefix: str, part: type[Part]) -> list[str]:
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return [f"{prefix}: {p}" if prefix else p for p in cause.problems]
    # A union's location also names the branch that was tried; those are not field names.
    loc = [str(key) for key in error["loc"] if not re.search(r"[\[\]()]", str(key)) and key != "NeuronMap"]
    if error["type"] == "extra_forbidden" and str(error["loc"][-1]) not in loc[-1:]:
        loc.append(str(error["loc"][-1]))  # a name of the user's own that looks like such a branch
    path = ".".join(filter(None, [prefix, *loc]))
    value, kind, ctx = shown(error["input"]), error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        owner = part
        for key in loc[:-1]:
            owner = part_of(owner.model_fields[key].annotation) or owner
        of_config = owner is not NeuronMap and prefix in Config.model_fields
        return [f"{path}: no such field; {nearest_field(path) if of_config else nearest(loc[-1], file_keys(owner))}"]
    if path == "model.neuron":
        return [f"{path}: must be lif, plif or a mapping of {', '.join(NeuronMap.model_fields)} to them, but got {value}"]
    rule = broken_rule(error)
    rule = rule.replace("must match ^[01]{4}$", 'must be four digits 0 or 1 such as "0011"')
    rule = rule.replace(
        f"must match {AUTO_AUGMENT}", "must be a policy of timm such as rand-m9-n1-mstd0.4-inc1, original or v0"
    )
    sentence = f"{path}: {rule}, but got {value}"
    if kind == "literal_error" and isinstance(error["input"], str):
        choices = re.findall(r"'([^']*)'", ctx["expected"])
        close = difflib.get_close_matches(error["input"], choices, n=1)
        sentence += f"; did you mean {close[0]}?" if close else ""
    return [sentence]
