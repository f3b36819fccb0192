"""Files are whole or not there; caches that cannot be written, or that others can write, are not used."""

import os
import resource
import shutil
import stat

import pytest

from statten.errors import UserError
from statten.files import append_line, new_folder, own_cache, write_text
from statten.neurons import native


@pytest.fixture
def homes(tmp_path, monkeypatch):
    """The user's cache folder, and his own place in the temporary folder."""
    for name in ("STATTEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    cache = tmp_path / "home" / ".cache" / "statten"
    cache.mkdir(parents=True)
    return cache, tmp_path / "tmp" / f"statten-{os.getuid()}"


@pytest.mark.parametrize("what", ["read-only", "others write", "a group writes", "another user's", "a file", "no home"])
def test_a_cache_that_cannot_be_trusted_or_written_is_not_used(what, homes, read_only, monkeypatch, caplog):
    cache, temporary = homes
    assert own_cache() == cache
    if what == "another user's" and os.getuid():
        pytest.skip("only root can give a folder away")
    {
        "read-only": lambda: read_only(cache.parents[1]),
        "others write": lambda: cache.chmod(0o777),
        "a group writes": lambda: cache.chmod(0o775),
        "another user's": lambda: os.chown(cache, 12345, -1),
        "a file": lambda: (cache.rmdir(), cache.write_text("mine")),
        "no home": lambda: (monkeypatch.delenv("HOME"), monkeypatch.setattr("pwd.getpwuid", _nobody)),
    }[what]()
    assert own_cache() == temporary and stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert what == "no home" or f"{cache} is not used as cache: " in caplog.text
    temporary.chmod(0o777)
    with pytest.raises(UserError, match=r"no folder can be used as cache: .*; name another in \$STATTEN_CACHE"):
        own_cache()


def _nobody(user):
    raise KeyError(user)


def test_a_library_that_others_could_have_written_is_not_loaded(homes, tmp_path, monkeypatch):
    """Loading it runs what is in it."""
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("there is no compiler")
    cache, temporary = homes
    quick = tmp_path / "c++"  # nobody measures this one
    quick.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
    quick.chmod(0o755)
    monkeypatch.setenv("CXX", str(quick))
    native.library.cache_clear()
    before = os.umask(0o002)
    try:
        assert native.library()._name.startswith(f"{cache}/native-")

        (made,) = cache.glob("*.so")
        made.unlink()  # the one that this process has open stays what it was
        made.write_text("not a library")
        made.chmod(0o666)
        native.library.cache_clear()
        assert native.library()._name == str(made) and stat.S_IMODE(made.stat().st_mode) == 0o755, "made anew"
        cache.chmod(0o777)
        native.library.cache_clear()
        assert native.library()._name.startswith(f"{temporary}/native-")
        (link,) = temporary.glob("*.so")
        shutil.move(link, tmp_path / "elsewhere.so")
        link.symlink_to(tmp_path / "elsewhere.so")
        native.library.cache_clear()
        assert native.library()._name == str(link) and not link.is_symlink()
    finally:
        os.umask(before)
        native.library.cache_clear()


@pytest.mark.parametrize("room", [0, 1, 40, 99])
def test_a_line_for_which_there_is_no_room_is_not_begun(room, tmp_path):
    file = tmp_path / "metrics.jsonl"
    append_line(file, "first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len("first\n") + room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_line(file, "x" * 99)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text() == "first\n", f"{room} bytes of a line whose rest found no room stay in the file"
    append_line(file, "second")
    assert file.read_text() == "first\nsecond\n"


def test_what_fails_halfway_leaves_nothing_aside(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "\udcff")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "folder") as aside:
        (aside / "part").write_text("half")
        assert aside.parent == tmp_path and aside.name.startswith(".folder-")
        raise ZeroDivisionError
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    with pytest.raises(FileExistsError), new_folder(tmp_path / "taken"):
        pass
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["taken"], f"what was written aside, and did not become what it was meant for, stays: {left}"
