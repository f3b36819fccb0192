"""A damaged file of any kind is read, or named in one sentence, in a moment, and nothing is written; see fuzzing.py."""

import logging
import os
import tempfile

import pytest
from fuzzing import fuzz, places
from kinds import KINDS

INPUTS = os.environ.get("STATTEN_FUZZ")
"""Inputs of every kind, where somebody wants more of them."""


@pytest.mark.filterwarnings("ignore")  # of Pillow, about tags that are damaged
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_named(name, tmp_path, monkeypatch):
    for variable, folder in places(tmp_path).items():
        monkeypatch.setenv(variable, folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(logging.getLogger("statten"), "level", logging.CRITICAL)
    kind = KINDS[name]
    outcome = fuzz(name, kind.build(tmp_path), int(INPUTS or kind.inputs), tmp_path)
    assert not outcome.mishandled, f"{len(outcome.mishandled)} of {outcome.inputs} inputs:\n" + "\n".join(
        outcome.mishandled[:3]
    )
