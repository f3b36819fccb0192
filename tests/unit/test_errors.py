"""How an error is said in one line."""

import pytest

from statten.errors import first_line


@pytest.mark.parametrize(
    ("text", "first"),
    [("one\ntwo", "one"), ("\n \n  two  \nthree", "two"), ("", "RuntimeError"), (" \n ", "RuntimeError")],
)
def test_what_an_error_says_first(text, first):
    assert first_line(RuntimeError(text)) == first
