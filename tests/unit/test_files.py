"""Caches: what cannot be written, or others can write, is not used."""

import os
import shutil
import stat

import pytest

from statten.errors import UserError
from statten.files import own_cache
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
