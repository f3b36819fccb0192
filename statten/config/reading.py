"""YAML to a tree and back.

Numbers are decimal without leading zeros, as in JSON (0011 is text); a key given twice is an error.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from statten.config.parts import Part
from statten.config.schema import Config
from statten.errors import ConfigError, shown

LARGEST = 1 << 20  # bytes of a file
MOST_NODES, DEEPEST = 100_000, 20  # of a tree, whose aliases count as what they stand for
TEXT = "tag:yaml.org,2002:str"


def _wrong(rule: str, node: Any) -> yaml.YAMLError:
    """The error for a node or event."""
    return yaml.YAMLError(f"{rule} (line {node.start_mark.line + 1})")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - declared so by PyYAML

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in (TEXT, self.resolve(type(node), node.value, (True, False))):
            raise _wrong(f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} has no place here; leave it out", node)
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag != TEXT:
                got = shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else f"a {key_node.id}"
                hint = "; a template's {{ NAME }} must be filled in first" if isinstance(key_node, yaml.MappingNode) else ""
                raise _wrong(f"a key must be text, but got {got}{hint}", key_node)
            if key_node.value in seen:
                raise _wrong(f"key {key_node.value!r} is given twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > 20 or not -(2**63) <= int(node.value) < 2**63:
        raise _wrong(f"a whole number must fit into 64 bits, but got {shown(node.value)}", node)
    return int(node.value)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes what the loader would not read as text, beside what other readers of YAML would not."""

    yaml_implicit_resolvers: dict = {  # noqa: RUF012
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }


def dump_yaml(tree: Any, flow: bool | None = False) -> str:
    """YAML text that `parse_yaml` reads back to an equal tree; `flow`: all in one line (True), or its leaves (None)."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=120)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text; `source` (a file or option) is named in the error."""
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except UnicodeEncodeError:
        raise ConfigError(f"{source}: not valid YAML: it is no text in UTF-8") from None


def _check_size(text: str) -> None:
    """Raise YAMLError for a tree that would break what reads it: the parser goes as deep as its stack, and beyond."""
    known: dict[str, int | None] = {}  # nodes below each anchor; None while it is not closed
    above: list[tuple[str | None, int]] = []  # anchor of each open collection, and nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            more = known.get(str(event.anchor), 1)
            if more is None:
                raise _wrong(f"{event.anchor!r} holds itself", event)
            nodes += more
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = above.pop()
            if anchor:
                known[anchor] = nodes - before
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if event.anchor:
                known[event.anchor] = 1
            if isinstance(event, yaml.CollectionStartEvent):
                above.append((event.anchor, nodes - 1))
                known.update({event.anchor: None} if event.anchor else {})
        if len(above) > DEEPEST or nodes > MOST_NODES:
            raise _wrong(f"at most {MOST_NODES:,} values, nested at most {DEEPEST} deep, are read", event)


def read_yaml(path: Path, part: type[Part] = Config) -> dict[str, Any]:
    """Read a YAML mapping from a file; `part` is what it should hold, for the error."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigError(f"{path}: cannot be read: it has more than {LARGEST >> 20} MiB, so it is no such file")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read: it is no text in UTF-8; save it as UTF-8") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a mapping of {', '.join(file_keys(part))}, but holds {shown(tree)}")
    return tree


def file_keys(part: type[Part]) -> list[str]:
    """What fields are called in a file."""
    return [field.alias or name for name, field in part.model_fields.items()]
