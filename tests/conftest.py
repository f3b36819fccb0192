"""What tests of every folder use: a command typed in this process, and the folder that it is typed in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Files that start clusters come first: short ones fill the end, where one process would wait for another."""
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in ("cluster", "integration"))


@pytest.fixture
def typed(monkeypatch, capsys):
    """Type a command in this process: `code, out, err = typed("train", "digits")`, printed as by a process of its own."""

    def type_(*words: object) -> tuple[int, str, str]:
        from statten import cli

        monkeypatch.setattr("statten.display.console.stderr", False)  # as in a new process; --json changes it
        monkeypatch.setattr(sys, "argv", ["statten", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return caught.value.code, shown.out, shown.err

    return type_


@pytest.fixture
def done(typed):
    """Type a command in this process that must succeed, or end with `code`; returns what it printed, JSON alone with --json."""

    def type_(*words: object, code: int = 0) -> str:
        ended, out, err = typed(*words)
        assert ended == code, out + err
        return out if "--json" in words else out + err

    return type_


@pytest.fixture(scope="module")
def ray():
    """One Ray for all commands that are typed in this process, as in a notebook."""
    from statten.cluster.session import ray_cluster

    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "STATTEN_STORAGE"):
            patch.delenv(name, raising=False)
        with ray_cluster(None):
            yield


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A user's folder, which is the working directory and the home, where no storage is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STATTEN_STORAGE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def read_only():
    """Make a folder read-only as a mount is, whose permission bits say otherwise; without root by its bits."""
    made: list[Path] = []

    def make(folder: Path) -> Path:
        made.append(folder)
        if os.getuid():
            for path in (folder, *folder.rglob("*")):
                path.chmod(path.stat().st_mode & ~0o222)
        else:
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        return folder

    yield make
    for folder in made:
        if os.getuid():
            for path in (folder, *folder.rglob("*")):
                path.chmod(path.stat().st_mode | 0o200)
        else:
            subprocess.run(["umount", "-l", folder], check=True)
