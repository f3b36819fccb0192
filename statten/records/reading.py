"""Reads a file of ours back: a document of its kind, or one sentence that names the file, the place in it and the rule.

A kind is a type that pydantic knows, nearly always a TypedDict: what is written and what is read are then the same plain
document. Numbers are no text and no bools; keys that a kind does not name may be there, for another version may have them.
Whatever the bytes are, reading takes little time and memory: a file has a largest size, and what it holds a largest depth.
"""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from statten.errors import UserError, broken_rule, shown

T = TypeVar("T")
LARGEST = 64 << 20
"""Bytes of a file at most, unless its reader names another size."""
DEEPEST = 32
"""Lists and objects inside each other at most."""
STRICT = ConfigDict(strict=True, extra="allow")
"""Of every TypedDict that is a kind."""
CLOSED = ConfigDict(strict=True, extra="forbid")
"""Of those in which every key counts."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float
"""Any number, NaN and infinity too, which a loss may be."""


def read(path: Path, kind: type[T], what: str = "", advice: str = "it is damaged", largest: int = LARGEST) -> T | None:
    """Read a JSON file; None where there is none.

    Args:
        path: the file.
        kind: what it may hold.
        what: how the sentence begins when it holds something else, such as "is no index".
        advice: how it ends.
        largest: its bytes at most.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        content = read_bytes(path, largest)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse(content, kind, str(path), what, advice)


def parse(content: bytes, kind: type[T], source: str, what: str = "", advice: str = "it is damaged") -> T:
    """The document in a JSON text; raises UserError, which names the source, as `read` does."""
    named = f"{source}: {what}" if what else source
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{named}: cannot be read: {reason}; {advice}") from None
    # Each level opens a bracket, so few brackets need no look.
    if content.count(b"[") + content.count(b"{") > DEEPEST and _is_deeper(value, DEEPEST):
        raise UserError(f"{named}: cannot be read: it is nested more than {DEEPEST} deep; {advice}")
    return check(value, kind, source, what, advice)


def check(value: Any, kind: type[T], source: str, what: str = "", advice: str = "it is damaged") -> T:
    """The document that plain lists, dicts and values are; raises UserError as `read` does."""
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        sentence = _sentence(error)
    except UnicodeError:  # a name in a sentence of ours, which pydantic cannot take
        sentence = "it must have names in UTF-8"
    raise UserError(f"{source}: {what}: {sentence}; {advice}" if what else f"{source}: {sentence}; {advice}")


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Content of a plain file of at most so many bytes; raises OSError, and UserError where it is none."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode) or found.st_size > largest:
            what = "is no plain file" if not stat.S_ISREG(found.st_mode) else f"has more than {largest:,} bytes"
            raise UserError(f"{path}: cannot be read: it {what}")
        return file.read(largest)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and dicts are nested deeper than so many levels."""
    level = [value]
    for _ in range(levels + 1):
        nodes = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list))
        level = [inner for node in nodes for inner in node if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _adapter(kind: Any) -> TypeAdapter:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


_ADAPTERS: dict[Any, TypeAdapter] = {}


def _sentence(error: ValidationError) -> str:
    """The first mistake: place, rule, value."""
    first = error.errors(include_url=False)[0]
    # A union's place also names the branch that was tried.
    place = ".".join(str(key) for key in first["loc"] if not re.search(r"[\[(]|^(constrained-)?(int|float|str)$", str(key)))
    rule = "must be a JSON object" if first["type"] in ("dict_type", "typed_dict_type") else broken_rule(first)
    if first["type"] == "extra_forbidden":
        rule = "is not known"
    if first["type"] in ("int_type", "float_type") and "constrained-int" in first["loc"]:
        rule = "must be a number"
    found = "" if first["type"] == "missing" else f", but got {shown(first['input'])}"
    return f"{place or 'it'} {rule}{found}"
