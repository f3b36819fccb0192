"""Every config that is accepted is written down so that it is read back the same, and every other is refused in sentences."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from statten.config import Config, dump_config, get_field, load_config, recipe_names, with_overrides
from statten.config.schema import Part
from statten.errors import ConfigError

BASES = {name: load_config(name) for name in recipe_names()}
FIELDS = {f"{part}.{name}": field for part, owner in Config.model_fields.items()
          for name, field in owner.annotation.model_fields.items()}  # type: ignore[union-attr]  # fmt: skip
# YAML reads much of what looks like a number, a bool or a date as one.
TEXTS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"[-+]?[0-9_:.]{1,6}([eE][-+]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from([
        "", "~", "null", "yes", "No", "true", "0o17", "0x1F", "1e5", "1_000", "12:30:45", "2026-01-01", ".inf", "-", "=", "<<",
        "# a", "a: b", "a #b", "&a", "*a", "!!str", "%TAG", "@a", "`a", "'", '"', "\\", "\t", " a ", "a\nb", "\x85", "\u2028",
        "\ufeff", "\x7f", "\ud800", "/a/\udce9", "é", "😀", "0011", "1111", "val/top1", "loss:min", "energy_uj <= 500",
        "x >= 1e999", "rand-m9-n1", "sqlite:///a.db", "postgresql://u@h/n",
    ]),
)  # fmt: skip


def values(annotation: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    """Values that a type may have, and now and then some that its bounds refuse."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values(inner[0], [*bounds, *inner[1:]])
    if origin in (Union, types.UnionType):
        return st.one_of(*(values(one, bounds) for one in inner))
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple and inner[-1] is ...:
        return st.lists(values(inner[0], []), max_size=4)
    if origin is tuple:
        return st.tuples(*(values(one, []) for one in inner)).map(list)
    if origin is list:
        return st.lists(values(inner[0], []), max_size=3)
    if annotation in (int, float):
        low = next(
            (
                getattr(b, "ge", getattr(b, "gt", None))
                for b in bounds
                if isinstance(b, annotated_types.Ge | annotated_types.Gt)
            ),
            None,
        )
        high = next(
            (
                getattr(b, "le", getattr(b, "lt", None))
                for b in bounds
                if isinstance(b, annotated_types.Le | annotated_types.Lt)
            ),
            None,
        )
        if annotation is int:
            return st.one_of(st.integers(low, high), st.integers(low or 0, 20))
        return st.one_of(st.floats(low, high, allow_nan=False, allow_infinity=False), st.floats(0, 1), st.integers(0, 3))
    if annotation is bool:
        return st.booleans()
    if annotation is type(None):
        return st.none()
    if annotation is str:
        pattern = next((b.pattern for b in bounds if getattr(b, "pattern", None)), None)
        return st.one_of(TEXTS, st.from_regex(pattern, fullmatch=True)) if pattern else TEXTS
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return st.fixed_dictionaries({}, optional={n: of_field(f) for n, f in annotation.model_fields.items()})
    raise AssertionError(f"no values for {annotation}")


def of_field(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Values of a field."""
    return values(field.annotation, field.metadata)


CHANGES = st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=4, unique=True).flatmap(
    lambda paths: st.fixed_dictionaries({path: of_field(FIELDS[path]) for path in paths})
)


def same_again(config: Config, path: Any) -> None:
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(base=st.sampled_from(sorted(BASES)), changes=CHANGES)
def test_what_is_accepted_is_read_back_the_same(base, changes, tmp_path):
    try:
        config = with_overrides(BASES[base], changes)
    except ConfigError as error:
        assert all(problem and problem.isprintable() for problem in error.problems)
        return
    note(dump_config(config))
    same_again(config, tmp_path / "config.yaml")


@pytest.mark.parametrize("path", sorted(FIELDS))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_every_field_alone_is_read_back_the_same(path, draw, tmp_path):
    value = draw.draw(of_field(FIELDS[path]))
    for base in ("digits", "cifar10dvs_2_256_t10", "imagenet_8_512"):
        try:
            config = with_overrides(BASES[base], {path: value})
        except ConfigError:
            continue
        note(f"{base}: {get_field(config, path)!r}")
        same_again(config, tmp_path / "config.yaml")


@pytest.mark.parametrize("name", sorted(BASES))
def test_a_recipe_is_read_back_the_same(name, tmp_path):
    same_again(BASES[name], tmp_path / "config.yaml")
