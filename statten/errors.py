"""What can go wrong, and how it is said: one plain sentence for each mistake."""

import difflib
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml


class UserError(ValueError):
    """The user's input is wrong. `problems` holds one plain sentence per mistake; the command line exits with 2."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(UserError):
    """A config file, an override or a combination of fields breaks a rule."""


class Failed(RuntimeError):
    """A job that was right to start did not reach its end; the message says why. The command line exits with 1."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error sentence: the closest choice, or all of them when none is close."""
    choices = [str(c) for c in choices]
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(choices)}"


def first_line(error: BaseException) -> str:
    """What an error says first, else what it is called."""
    return next((line for text in str(error).splitlines() if (line := text.strip())), type(error).__name__)


def shown(value: Any) -> str:
    """A value as a sentence shows it: in YAML, at most 60 characters."""
    text = repr(value) if isinstance(value, str) else in_yaml(value)
    return text if len(text) <= 60 else text[:57] + "..."


def in_yaml(value: Any) -> str:
    """A value on one line, as a file or `--set` has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("...").strip()


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, in which `~` is the home folder; raises UserError where no file system can hold it."""
    path = Path(os.path.expanduser(text))
    if "\0" in str(path) or len(os.fsencode(path)) > 4095 or any(len(os.fsencode(part)) > 255 for part in path.parts):
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
