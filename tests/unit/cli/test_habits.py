"""What people expect of every command line: --version, -h, whole help, completion, and one word for one state."""

import os
import re
import subprocess
import sys

import pytest

import statten
from statten.cli.options import GROUPS, app
from statten.display import state_word


def test_the_version_is_told(typed):
    assert typed("--version")[:2] == (0, f"statten {statten.__version__}\n")


@pytest.mark.parametrize("words", [["-h"], ["train", "-h"], ["data", "check", "-h"]])
def test_h_is_help(words, typed):
    code, out, _ = typed(*words)
    assert code == 0 and out == typed(*words[:-1], "--help")[1] and out.startswith("Usage: statten")


def test_help_is_whole_and_in_groups(typed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = typed("--help")
    assert "..." not in out.partition("\n")[2] and max(map(len, out.splitlines())) <= 80
    assert [title for title in GROUPS if f"\n{title}:\n" in out] == list(GROUPS) and "Others:" not in out
    flat = " ".join(out.split())
    for line in ("Train a sweep's best trial (or a run) further, from its own checkpoint.", "early exit by confidence."):
        assert line in flat


def test_every_command_is_in_one_group():
    import typer

    commands = set(typer.main.get_command(app).commands)
    named = [name for names in GROUPS.values() for name in names]
    assert len(named) == len(set(named)) and commands <= set(named)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("statten train im", "image_folder imagenet_8_512 imagenet_8_768"),
        ("statten train digits --set train.ep", "train.epochs="),
        ("statten show mi", "mine"),
        ("statten ev", "evaluate"),
    ],
)
def test_a_shell_completes_names(line, found, work):
    (work / "runs" / "mine").mkdir(parents=True)
    words = {"_STATTEN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "statten"], capture_output=True, text=True, env={**os.environ, **words}, cwd=work, check=False
    )
    assert done.stdout.split() == found.split(), done.stderr


def test_a_state_has_one_word():
    assert {state_word(state) for state in ("complete", "finished")} == {"finished"}
    assert {state_word(state) for state in ("pruned", "stopped")} == {"stopped early"}
    assert {state_word(state) for state in ("fail", "failed")} == {"failed"}
    assert {state_word(state) for state in ("training", "running")} == {"running"}
    from statten.report.trials import STATES

    assert all(word == state_word(state) and not re.search("complete|prune", word) for state, word in STATES.items())
