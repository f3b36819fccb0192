"""The token of a cluster: made so that only its owner reads it, refused otherwise, and never shown."""

import os
import stat

import pytest

from statten.cluster.session import ray_cluster
from statten.cluster.token import make_token, own_token, read_token, token_file
from statten.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_is_made_once_and_for_its_owner_alone(home):
    before = os.umask(0)
    try:
        path = make_token()
    finally:
        os.umask(before)
    assert path == token_file() == home / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    token = path.read_text()
    assert len(token) == 64 and int(token, 16) and read_token() == token
    assert make_token() == path and path.read_text() == token, "one that is there stays"


def test_no_token_is_none():
    assert read_token() is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
def test_a_token_that_others_can_read_is_refused(mode):
    path = make_token()
    path.chmod(mode)
    for use in (read_token, make_token):
        with pytest.raises(UserError, match=f"its mode is {mode:o}; type: chmod 600 {path}") as caught:
            use()
        assert path.read_text() not in str(caught.value)


@pytest.mark.parametrize("text", ["", "  \n", "two words", "ümlaut", "a\nb"])
def test_a_file_without_a_token_is_refused(text):
    path = make_token()
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path}: holds no token"):
        read_token()


def test_ray_reads_the_same_places(home, monkeypatch):
    make_token()
    elsewhere = home / "elsewhere"
    elsewhere.write_text("of-the-path\n")
    elsewhere.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(elsewhere))
    assert read_token() == "of-the-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-variable")
    assert read_token() == "of-the-variable"


def test_a_ray_that_is_started_here_finds_a_token_that_only_its_owner_reads(home, monkeypatch):
    own_token()
    token = read_token()
    assert token and stat.S_IMODE(token_file().stat().st_mode) == 0o600
    token_file().chmod(0o644)  # as Ray's own commands make it
    own_token()
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600 and read_token() == token
    (home / "file").write_text("")
    monkeypatch.setenv("HOME", str(home / "file"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    own_token()
    assert read_token() is None
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # given back afterwards
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    own_token()
    assert len(read_token()) == 64 and not token_file().exists(), "no home to keep it in"


@pytest.mark.slow
def test_a_token_that_was_replaced_since_counts(home):
    """A process, a notebook's say, has used one token; the file then gets another one."""
    for _ in range(2):
        with ray_cluster(None) as resources:
            assert resources["CPU"] >= 1
        token_file().write_text("0" * 64)
