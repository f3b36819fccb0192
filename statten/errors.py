"""What can go wrong, and how it is said: one plain sentence for each mistake."""

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml


class UserError(ValueError):
    """The user's input is wrong. `problems` holds one plain sentence per mistake; the command line exits with 2."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [_line(p) for p in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))


LONGEST = 1500
"""Characters of a sentence at most: what a user wrote, and what a library says, may have many more."""


def _line(sentence: str) -> str:
    """A sentence in one line that a terminal can show."""
    if len(sentence) > LONGEST:
        sentence = f"{sentence[: LONGEST - 300]} ... {sentence[-290:]}"
    return sentence if sentence.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in sentence)


def _escaped(character: str) -> str:
    return " " if character.isspace() else ascii(character)[1:-1]


class ConfigError(UserError):
    """A config file, an override or a combination of fields breaks a rule."""


class Failed(RuntimeError):
    """A job that was right to start did not reach its end; the message says why. The command line exits with 1."""


MOST = 40
"""Choices that a sentence lists."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error sentence: the closest choice, or all of them when none is close."""
    choices = [str(c) for c in choices]
    close = difflib.get_close_matches(str(name)[:100], choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    more = f" and {len(choices) - MOST} more" if len(choices) > MOST else ""
    return f"choose from {', '.join(choices[:MOST])}{more}"


def first_line(error: BaseException) -> str:
    """What an error says first, else what it is called."""
    return next((line for text in str(error).splitlines() if (line := text.strip())), type(error).__name__)


def broken_rule(error: Mapping[str, Any]) -> str:
    """The rule that a value broke, in words, of an error as pydantic lists it."""
    kind, context = error["type"], error.get("ctx", {})
    return _RULES[kind].format(**context) if kind in _RULES else error["msg"]


_RULES = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be one of {expected}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "too_short": "must hold at least {min_length}",
    "too_long": "must be {max_length} numbers",
    "missing": "must be given",
    "tuple_type": "must be a list of numbers",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "value_error": "{error}",
}


def shown(value: Any) -> str:
    """A value as a sentence shows it: in YAML, at most 60 characters."""
    text = repr(value) if isinstance(value, str) else in_yaml(_first(value, [60]))
    return text if len(text) <= 60 else text[:57] + "..."


def in_yaml(value: Any) -> str:
    """A value on one line, as a file or `--set` has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("...").strip()


def _first(value: Any, left: list[int]) -> Any:
    """Of a tree as many values as are seen of it; `left` counts them down. It may be large, and deep."""
    left[0] -= 1
    if isinstance(value, dict):
        return {key: _first(inner, left) for key, inner in value.items() if left[0] > 0}
    if isinstance(value, list | tuple):
        return [_first(inner, left) for inner in value if left[0] > 0]
    return value


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, in which `~` is the home folder; raises UserError where no file system can hold it."""
    path = Path(os.path.expanduser(text))
    try:
        sizes = [len(os.fsencode(path)), *(16 * len(os.fsencode(part)) for part in path.parts)]
    except UnicodeEncodeError:  # half of a character
        sizes = [4096]
    if "\0" in str(path) or max(sizes) > 4095:
        raise UserError(f"{shown(str(path))} is no path: a name has at most 255 bytes, a path 4095, and none of them is zero")
    return path


def in_shell(word: object) -> str:
    """A path or name as it is typed in a shell, for a command that a sentence proposes."""
    return shlex.quote(str(word))


def holds_secret(uri: str) -> bool:
    """Whether a URI has a password or a key in it: between // and @, or as a parameter."""
    keys = r"(pass|passwd|password|pwd|\bsig|secret\w*|token|(access|account|shared|api)_?key)\s*="
    return re.search(r"://[^@/?]*:[^@]*@", uri) is not None or re.search(keys, unquote(uri), re.I) is not None


class Superseded(RuntimeError):
    """A newer attempt writes this run."""
