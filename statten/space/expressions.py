"""Arithmetic and comparisons over fields of the config, as a search space writes them: `8 * model.num_heads`,
`model.depth > 2 and train.optimizer == 'sgd'`. Parsed into a tree of allowed nodes; nothing is ever given to `eval`.

    values       numbers, 'text', true, false, null, dotted paths of fields
    arithmetic   + - * / // %, min(...), max(...)
    comparisons  < <= > >= == != in, chained as in 1 < model.depth <= 4
    logic        and, or, not
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from statten.config import field_at
from statten.config.paths import fields_called
from statten.errors import ConfigError, nearest

Known = Mapping[str, Any]
Reader = Callable[[Known], Any]

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDERS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EQUALITIES: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, options: value in options,
    ast.NotIn: lambda value, options: value not in options,
}
_WORDS = {"true": True, "false": False, "null": None}
# What the mapping form of a condition may say, `{model.depth: {above: 2}}`, and how the text form says it.
CONDITIONS = {"is": "==", "not": "!=", "above": ">", "below": "<", "at_least": ">=", "at_most": "<=", "in": "in"}
LONGEST = 500


@dataclass(frozen=True)
class Expression:
    """A parsed expression; equal texts are equal expressions."""

    text: str
    fields: tuple[str, ...] = field(compare=False)
    """Dotted paths that it reads, each once, in order."""
    operators: frozenset[str] = field(compare=False)
    """The kinds of its operators, such as Mod or NotEq."""
    read: Reader = field(compare=False, repr=False)

    def __reduce__(self) -> Any:
        return parse, (self.text,)  # functions inside functions cannot be pickled

    def of(self, known: Known) -> Any:
        """Its value, given the value of each of its fields; raises ConfigError where it has none."""
        try:
            return self.read(known)
        except ZeroDivisionError:
            raise ConfigError(f"{self.text!r} divides by zero where {self.shown(known)}") from None
        except OverflowError:
            raise ConfigError(f"{self.text!r} is too large a number where {self.shown(known)}") from None

    def shown(self, known: Known) -> str:
        """Its fields with their values, for a message."""
        return ", ".join(f"{path}={literal(known[path])}" for path in self.fields)


def parse(text: Any) -> Expression:
    """Parse an expression; raises ConfigError with the part that is not allowed, or the field that does not exist."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ConfigError(f"must be an expression such as 8 * model.num_heads, but got {text!r}")
    text = str(text).strip()
    if len(text) > LONGEST:
        raise ConfigError(f"an expression must have at most {LONGEST} characters, but got {len(text)}")
    try:
        tree = ast.parse(text, mode="eval").body
        fields: dict[str, None] = {}
        read = _reader(tree, fields)
        operators = frozenset(type(node).__name__ for node in ast.walk(tree) if isinstance(node, ast.operator | ast.cmpop))
        return Expression(text, tuple(fields), operators, read)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise ConfigError([f"{text!r}: {problem}" for problem in error.problems]) from None
        raise ConfigError(f"{text!r} is no expression such as 8 * model.num_heads or model.depth > 2") from None


def parse_condition(rule: Any) -> Expression:
    """A condition from its text, or from a mapping of fields to a value, a list of values, or `{above: 2}`."""
    if isinstance(rule, bool):
        raise ConfigError(f"a condition must be a comparison such as model.depth > 2, but got {literal(rule)}")
    if not isinstance(rule, dict):
        return parse(rule)
    if not rule:
        raise ConfigError("a condition must be a comparison such as model.depth > 2, but is empty")
    return parse(" and ".join(part for path, test in rule.items() for part in _tests(str(path), test)))


def literal(value: Any) -> str:
    """A value as an expression writes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value)


def _tests(path: str, test: Any) -> list[str]:
    """`{above: 2}` of a field as texts; a plain value means `is`, a list means `in`."""
    if not isinstance(test, dict):
        test = {"in" if isinstance(test, list) else "is": test}
    for word, value in test.items():
        if word not in CONDITIONS:
            raise ConfigError(f"{path}: {word!r} is no condition; {nearest(str(word), CONDITIONS)}")
        if isinstance(value, list) != (word == "in") or isinstance(value, dict):
            wanted = "a list of values" if word == "in" else "one value"
            raise ConfigError(f"{path}: condition {word!r} must have {wanted}, but got {value!r}")
    return [
        f"{path} {CONDITIONS[word]} " + (f"[{', '.join(map(literal, value))}]" if word == "in" else literal(value))
        for word, value in test.items()
    ]


def _reader(node: ast.expr, fields: dict[str, None]) -> Reader:
    """A function from known fields to the node's value; notes the fields it reads."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        value = node.value
        return lambda known: value
    if isinstance(node, ast.Name) and node.id in _WORDS:
        word = _WORDS[node.id]
        return lambda known: word
    if isinstance(node, ast.Name | ast.Attribute):
        return _field(node, fields)
    if isinstance(node, ast.List | ast.Tuple):
        items = [_reader(item, fields) for item in node.elts]
        return lambda known: [item(known) for item in items]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        denied = _truth(node.operand, fields)
        return lambda known: not denied(known)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        negated = _number(node.operand, fields)
        return lambda known: -negated(known)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        apply = _ARITHMETIC[type(node.op)]
        left, right = _number(node.left, fields), _number(node.right, fields)
        return lambda known: apply(left(known), right(known))
    if isinstance(node, ast.BoolOp):
        parts = [_truth(part, fields) for part in node.values]
        join = all if isinstance(node.op, ast.And) else any
        return lambda known: join(part(known) for part in parts)
    if isinstance(node, ast.Compare):
        return _comparison(node, fields)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        if len(node.args) < 2 or node.keywords:
            raise ConfigError(f"{node.func.id} must have at least two values, but got {ast.unparse(node)}")
        choose = min if node.func.id == "min" else max
        values = [_number(argument, fields) for argument in node.args]
        return lambda known: choose(value(known) for value in values)
    raise ConfigError(
        f"{ast.unparse(node)} is not allowed; an expression has numbers, texts, fields, + - * / // %, min, max, comparisons, "
        f"and, or, not"
    )


def _field(node: ast.expr, fields: dict[str, None]) -> Reader:
    path = ast.unparse(node)
    try:
        field_at(path)
    except ConfigError as error:
        if "." not in path:
            such = (fields_called(path) or ["model.depth"])[0]
            raise ConfigError(f"{path} is no field; write a path such as {such}, or a text as '{path}'") from None
        raise error from None
    fields[path] = None
    return lambda known: known[path]


def _comparison(node: ast.Compare, fields: dict[str, None]) -> Reader:
    """`a < b <= c` holds where both of its parts do."""
    parts = []
    for op, left, right in zip(node.ops, [node.left, *node.comparators], node.comparators, strict=False):
        if type(op) in _ORDERS:
            parts.append((_ORDERS[type(op)], _number(left, fields), _number(right, fields)))
        elif type(op) in _EQUALITIES:
            if isinstance(op, ast.In | ast.NotIn) and not isinstance(right, ast.List | ast.Tuple):
                raise ConfigError(f"`in` must be followed by a list such as [1, 2], but got {ast.unparse(right)}")
            parts.append((_EQUALITIES[type(op)], _reader(left, fields), _reader(right, fields)))
        else:
            raise ConfigError(f"{ast.unparse(node)} is not allowed; compare with < <= > >= == != or in")
    return lambda known: all(compare(left(known), right(known)) for compare, left, right in parts)


def _number(node: ast.expr, fields: dict[str, None]) -> Reader:
    """Reads a node that must be a number."""
    read, text = _reader(node, fields), ast.unparse(node)

    def number(known: Known) -> Any:
        value = read(known)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{text} must be a number here, but is {literal(value)}")
        return value

    return number


def _truth(node: ast.expr, fields: dict[str, None]) -> Reader:
    """Reads a node that must be true or false."""
    read, text = _reader(node, fields), ast.unparse(node)

    def truth(known: Known) -> bool:
        value = read(known)
        if not isinstance(value, bool):
            raise ConfigError(f"{text} must be true or false here, but is {literal(value)}")
        return value

    return truth
