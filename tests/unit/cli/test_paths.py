"""Paths of the command line: `~` is the home folder everywhere, and what a message proposes can be typed."""

import typing
from pathlib import Path

import pytest

from statten.cli import app
from statten.config import load_config
from statten.errors import in_shell, user_path
from statten.files import cache_folder
from statten.jobs.file import load_job
from statten.space.loading import space_file
from statten.storage.run import Run, default_storage, locate


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(found):
    for group in found:
        yield from group.registered_commands
        yield from commands(each.typer_instance for each in group.registered_groups)


def test_no_option_takes_a_path_as_it_stands():
    """Each has a parser, but for job files, whose reader knows `~`."""
    bare = set()
    for command in commands([app]):
        for name, hint in typing.get_type_hints(command.callback, include_extras=True).items():
            kind = typing.get_args(hint)
            if kind and Path in (kind[0], *typing.get_args(kind[0])) and not kind[1].parser:
                bare.add((command.callback.__name__, name))
    assert bare == {("run", "job")}


def test_the_home_folder(home, monkeypatch):
    monkeypatch.setenv("STATTEN_STORAGE", "~/runs")
    monkeypatch.setenv("STATTEN_CACHE", "~/cache")
    assert (default_storage(), cache_folder()) == (home / "runs", home / "cache")
    (home / "job.yaml").write_text("command: train\nrecipe: ~/r.yaml\n")
    (home / "r.yaml").write_text("model: {in_channels: 1, image_size: 8}\n")
    (home / "s.yaml").write_text("model.depth: {int: [1, 2]}\n")
    assert load_job(Path("~/job.yaml")).recipe == "~/r.yaml"
    assert space_file("~/s.yaml") == home / "s.yaml"
    (home / "runs").mkdir()
    run = Run.create(home / "runs" / "mine", load_config("digits"))
    assert locate("~/runs/mine", Path("elsewhere")) == run.path
    (home / "~").mkdir()
    assert user_path("./~") == Path("~"), "a folder of that name"


def test_a_proposed_command_can_be_typed(home, typed):
    folder = home / "my data"
    (folder / "frames_number_4_split_by_number").mkdir(parents=True)
    (folder / "frames_number_4_split_by_number.building").touch()
    code, _, err = typed("data", "check", "ncaltech101", "--root", folder, "--timesteps", 4)
    assert code == 2 and f"statten data prepare ncaltech101 --root '{folder}' --timesteps 4" in err
    assert in_shell(folder) == f"'{folder}'"
