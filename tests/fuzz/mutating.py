"""Seeded damage: of bytes, of text, and of the trees that JSON and YAML hold."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

NUMBERS = [
    0, -1, 1, 2, 255, 2**31, 2**32, 2**53, 2**63, 2**64, 10**20, 10**400, 300_000_000, -(2**63), 0.5, -0.0, 1e-320, 1e308,
    float("inf"), float("-inf"), float("nan"), 3.0000001,
]  # fmt: skip
TEXTS = [
    "", "0", "1.5", "nan", "\x00", "\u2028", "\udcff", "é", "../../x", "/etc/passwd", "a" * 300, "a" * 20_000, "~", "{{ X }}",
    "val/top1", "finished", "[bold]", "%s", "!!python/object/apply:os.system [x]",
]  # fmt: skip
ODD = [None, True, False, [], {}, [[]], {"": {}}, [1, "a", None], {"a": 1}, *NUMBERS, *TEXTS]
CHUNKS = [
    b"\0", b"\xff" * 4, b"\0" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\n", b"\r\n", b'"', b"{", b"}", b"[" * 50, b"&a [*a]",
    b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY", b"-1", b"9" * 30, b"1e999", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"..\\",
    b"../", b": ", b"- ", b"\t", b"# ", b"'", b"\\u0000",
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four faults."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(content) + 1), min(1 + int(rng.expovariate(1 / 12)), 4096)
        # Formats keep what decides in their first and last bytes.
        if rng.random() < 0.5:
            at = min(len(content), rng.choice((at % 64, max(0, len(content) - 1 - at % 64))))
        match rng.randrange(9):
            case 0 if content:
                content[min(at, len(content) - 1)] ^= 1 << rng.randrange(8)
            case 1 if content:
                content[min(at, len(content) - 1)] = rng.randrange(256)
            case 2:
                content[at:at] = rng.choice(CHUNKS)
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = content[at : at + length]
            case 5:
                del content[at:]
            case 6:
                there = rng.choice(CHUNKS)
                content[at : at + len(there)] = there
            case 7:
                number = rng.choice((0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
                width = 4 if number >= 2**16 or rng.random() < 0.5 else 2
                content[at : at + width] = number.to_bytes(4, rng.choice(("little", "big")))[:width]  # type: ignore[arg-type]
            case 8:
                other = rng.randrange(len(content) + 1)
                content[at : at + length] = content[other : other + length]
    return bytes(content)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree, as its parent and its key there."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from places(value)


def changed(tree: Any, rng: random.Random) -> Any:
    """A copy of a tree with one to three places replaced, removed, renamed, repeated, added or wrapped."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        known = list(places(tree))
        if not known or rng.random() < 0.02:
            return rng.choice(ODD)
        parent, key = rng.choice(known)
        match rng.randrange(10):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(TEXTS)] = parent.pop(key)
            case 2:
                parent[key] = copy.deepcopy(parent[key]) if rng.random() < 0.2 else [parent[key]]
            case 3:
                for _ in range(rng.choice((1, 5, 40, 400))):
                    parent[key] = rng.choice(([parent[key]], {"a": parent[key]}))
            case 4 if isinstance(parent[key], list):
                parent[key] = parent[key] * 2 if rng.random() < 0.5 else []
            case 5:
                donor, name = rng.choice(known)
                if name in donor if isinstance(donor, dict) else name < len(donor):
                    parent[key] = copy.deepcopy(donor[name])
            case 6 if isinstance(parent[key], int | float) and abs(parent[key]) < 1e300:
                parent[key] = rng.choice(
                    (parent[key] + 1, -parent[key], str(parent[key]), float(parent[key]), parent[key] * 1.001)
                )
            case _:
                parent[key] = copy.deepcopy(rng.choice(ODD))
    return tree


def document(content: bytes, rng: random.Random) -> bytes:
    """A JSON document that is damaged as a tree, or now and then as bytes."""
    if rng.random() < 0.2:
        return damaged(content, rng)
    return json.dumps(changed(json.loads(content), rng), indent=rng.choice((None, 1))).encode()


def lines(content: bytes, rng: random.Random) -> bytes:
    """Lines of JSON of which some are damaged, repeated, moved or missing."""
    found = content.splitlines()
    at = rng.randrange(len(found))
    match rng.randrange(5):
        case 0:
            found[at:at] = [found[rng.randrange(len(found))]]
        case 1:
            del found[at]
        case 2:
            return damaged(content, rng)
        case _:
            found[at] = document(found[at], rng).replace(b"\n", b" ")
    return b"\n".join(found) + b"\n" * rng.randrange(2)


def yaml_text(content: bytes, rng: random.Random) -> bytes:
    """YAML that is damaged as text, or as the tree that it holds."""
    import yaml

    if rng.random() < 0.4:
        return damaged(content, rng)
    try:
        tree = changed(yaml.load(content, yaml.CSafeLoader), rng)
        return yaml.dump(tree, Dumper=yaml.CSafeDumper, default_flow_style=rng.choice((None, True, False))).encode()
    except (UnicodeError, ValueError, RecursionError):  # a lone surrogate, digits without end, deeper than PyYAML goes
        return damaged(content, rng)
