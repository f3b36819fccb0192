"""What every part of the config is made of: its base class, and numbers and paths as users write them."""

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, field_validator

from statten.errors import user_path


def _no_bool(value: Any) -> Any:
    # YAML's `true` must not pass as the number 1.
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _fits(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError("must fit into 64 bits")
    return value


def _at_home(value: str) -> str:
    # A path as the user writes it, or that of an SQLite file behind its scheme; other URLs have no home folder.
    scheme, slashes, path = value.rpartition(":///")
    if "://" in value and not scheme.startswith("sqlite"):
        return value
    user_path(path)
    return scheme + slashes + os.path.expanduser(path)


def absolute_place(value: str) -> str:
    """A path, or that of an SQLite file behind its scheme, as an absolute one: it means the same from every folder."""
    scheme, slashes, path = value.rpartition(":///")
    if value == "databricks" or (re.match(r"[a-z][a-z0-9+.-]*:", value) and not scheme.startswith("sqlite")):
        return value
    return scheme + slashes + os.path.abspath(path)


Place = Annotated[str, AfterValidator(_at_home)]
Int = Annotated[int, BeforeValidator(_no_bool), AfterValidator(_fits)]
Float = Annotated[float, BeforeValidator(_no_bool)]


class Part(BaseModel):
    """Common behaviour of all parts: unknown keys are errors, values are immutable, field docstrings are the help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_unicode(cls, value: Any) -> Any:
        # A file name may have bytes that are no text; no YAML file could hold it.
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("must be text in UTF-8") from None
        return value
