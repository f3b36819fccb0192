"""Search-space files to a checked `Space`: every mistake in a sentence of its own, before anything is proposed."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from statten.config import Config, read_yaml, with_overrides
from statten.errors import ConfigError, UserError, nearest, user_path
from statten.space.dimensions import CONSTRAINT, Couple, Derived, Dimension, Plain, make_dimension
from statten.space.domains import Choices, Domain, Range, Share
from statten.space.expressions import Expression, parse
from statten.space.space import MOST_TRIES, Choose, Point, Space, shown_point

# A space with more combinations than this is checked on a sample of so many.
CHECKED = 2000


def load_space(path: Path | Sequence[Path], base: Config) -> Space:
    """Read space files and check them together around a base config; a line of a later file replaces an earlier one's.

    Raises:
        ConfigError: every mistake in a sentence of its own: unknown fields, values that a field refuses, an empty range,
            fields that wait for each other, and combinations that break a rule.
    """
    files = [path] if isinstance(path, Path) else list(path)
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    notes = [f"merged from {', '.join(map(str, files))}"] if len(files) > 1 else []
    for file in files:
        for name, rule in read_yaml(file).items():
            if name == CONSTRAINT and name in tree:
                tree[name] = _texts(tree[name]) + _texts(rule)
                continue
            if name in tree:
                notes.append(f"{name}: as in {file}, in place of {sources[name]}")
            tree[name], sources[name] = rule, str(file)
    return make_space(tree, base, " + ".join(map(str, files)), tuple(notes), sources)


def make_space(
    tree: dict[str, Any],
    base: Config,
    source: str = "space",
    notes: tuple[str, ...] = (),
    sources: Mapping[str, str] | None = None,
) -> Space:
    """A space from a mapping; see `load_space`. `sources` has the file of each line, for messages."""
    if not tree:
        raise ConfigError(f"{source}: names no field to search; add a line such as model.depth: {{int: [1, 4]}}")
    dimensions: list[Dimension] = []
    constraints: list[Expression] = []
    problems: list[str] = []
    for name, rule in tree.items():
        try:
            if name == CONSTRAINT:
                constraints += _constraints(rule)
            else:
                dimension = make_dimension(str(name), rule)
                _check_values(dimension, base)
                dimensions.append(dimension)
        except ConfigError as error:
            problems += [f"{(sources or {}).get(name, source)}: {problem}" for problem in error.problems]
    if not problems:
        try:
            return _checked(Space(_in_order(dimensions), tuple(constraints), base, tree, notes))
        except ConfigError as error:
            problems = [f"{source}: {problem}" for problem in error.problems]
    raise ConfigError(problems)


def _texts(rule: Any) -> list[Any]:
    return rule if isinstance(rule, list) else [rule]


def _constraints(rule: Any) -> list[Expression]:
    problems: list[str] = []
    constraints: list[Expression] = []
    for text in _texts(rule):
        try:
            if not isinstance(text, str):
                raise ConfigError(f"must be a comparison such as model.depth * model.embed_dim <= 2048, but got {text!r}")
            constraints.append(parse(text))
        except ConfigError as error:
            problems += [f"{CONSTRAINT}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return constraints


def _in_order(dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Each dimension after those whose fields it reads, else as in the file; continuous ones as late as possible.

    A constraint is decided by the last of its dimensions: best an interval, which stays one where it is cut.
    """
    owner: dict[str, Dimension] = {}
    for dimension in dimensions:
        for path in dimension.paths:
            if path in owner:
                raise ConfigError(f"{path}: is set by both {owner[path].name} and {dimension.name}; leave one of them out")
            owner[path] = dimension
    ordered: list[Dimension] = []

    def place(dimension: Dimension, waiting: tuple[Dimension, ...]) -> None:
        if dimension in waiting:
            circle = [d.name for d in (*waiting[waiting.index(dimension) :], dimension)]
            raise ConfigError(f"{dimension.name}: depends on itself ({' -> '.join(circle)}); break the circle")
        if dimension in ordered:
            return
        for path in dimension.reads:
            if path in owner:
                place(owner[path], (*waiting, dimension))
        ordered.append(dimension)

    for dimension in sorted(dimensions, key=lambda d: isinstance(d, Plain) and isinstance(d.values, Range)):
        place(dimension, ())
    return tuple(ordered)


def _check_values(dimension: Dimension, base: Config) -> None:
    """Each value must be one that the field takes by itself; rules between fields are for `_check_combinations`."""
    rows: list[Point] = []
    if isinstance(dimension, Couple):
        rows = [dict(zip(dimension.paths, row, strict=True)) for row in dimension.rows]
    elif isinstance(dimension, Derived) and not isinstance(dimension.source, Expression):
        rows = [{dimension.name: dimension.source}]
    elif isinstance(dimension, Plain):
        values = dimension.values
        rows = [{dimension.name: v} for v in (values.values if isinstance(values, Choices) else (values.low, values.high))]
    for row in rows:
        try:
            if auto := with_overrides(base, row).auto:
                raise ConfigError(f"{auto[0]}: auto has no place in a space; give values")
        except ConfigError as error:
            own = [p for p in error.problems if any(p.startswith(f"{path}:") for path in row)]
            if own:
                raise ConfigError(own) from None


def _checked(space: Space) -> Space:
    """The space, when every combination that it proposes is valid."""
    set_here = {path for d in space.dimensions for path in d.paths}
    for constraint in space.constraints:
        if not set_here.intersection(constraint.fields):
            raise ConfigError(f"{CONSTRAINT}: {constraint.text!r} must name a field of the space; it has {', '.join(set_here)}")
    if not space.paths:
        raise ConfigError("names no field to search, constants only; add a line such as model.depth: {int: [1, 4]}")
    _check_constraints(space)
    space.count()
    _check_combinations(space)
    return space


def _check_constraints(space: Space) -> None:
    for i in sorted(space.tied):
        dimension = space.dimensions[i]
        if not isinstance(dimension, Plain) or not isinstance(dimension.values, Range):
            continue
        for constraint in space.constraints:
            jumps = constraint.operators & {"Mod", "FloorDiv", "NotEq", "NotIn", "Eq", "In"}
            if dimension.name in constraint.fields and jumps:
                raise ConfigError(
                    f"{CONSTRAINT}: {constraint.text!r} must compare {dimension.name}, which is continuous, with < <= > >= and "
                    f"without // and %; or give {dimension.name} a step"
                )
    if not space.can_complete(0, dict(space.base_values)):
        texts = ", ".join(repr(constraint.text) for constraint in space.constraints)
        raise ConfigError(f"{CONSTRAINT}: no combination of the space satisfies {texts}")


def _check_combinations(space: Space) -> None:
    generator = random.Random(0)

    def at_an_end(dimension: Dimension, name: str, domain: Domain) -> Any:
        return domain.random(generator) if domain.size_is_finite else generator.choice(list(domain.items()))

    def anywhere(dimension: Dimension, name: str, domain: Domain) -> Any:
        if isinstance(domain, Share) and domain.pieces > 1:
            raise ConfigError(
                f"{CONSTRAINT}: must leave {dimension.name} one piece, and not a narrow one, but leaves {domain.pieces}; write "
                f"choices, or give {dimension.name} a step"
            )
        return domain.random(generator)

    points = list(itertools.islice(space.corners(), CHECKED + 1))
    if len(points) > CHECKED:
        points = list(_walks(space, at_an_end, CHECKED))
    if space.constraints:
        points += _walks(space, anywhere, CHECKED // 40)
    for point in points:
        try:
            space.config(point)
        except ConfigError as error:
            hint = ""
            if "`block_size`" in error.problems[0]:
                hint = "; write model.block_size: {divisors_of: model.timesteps}"
            elif "`embed_dim`" in error.problems[0]:
                hint = "; give model.embed_dim the option multiple_of: 8 * model.num_heads"
            raise ConfigError(f"proposes an invalid combination {shown_point(point)}: {error.problems[0]}{hint}") from None


def _walks(space: Space, choose: Choose, most: int) -> Iterator[Point]:
    """So many points, or as many as there is patience for."""
    tries = 0
    for _ in range(most):
        yield space.walk(choose)
        tries += space.tries[0]
        if tries > MOST_TRIES:
            return


def space_file(space: str) -> Path:
    """The search-space file that a path, or a name in search_spaces/, means."""
    path, names = user_path(space), sorted(p.stem for p in Path("search_spaces").glob("*.yaml"))
    if space in names:
        return Path("search_spaces") / f"{space}.yaml"
    if not path.exists():
        raise UserError(f"--space: no such file: {space}" + (f"; {nearest(space, names)}" if names else ""))
    return path
