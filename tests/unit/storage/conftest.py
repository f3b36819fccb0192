"""A storage in an object store for each test; a module says in its fixture `server` which servers there are."""

import object_store
import pytest

from statten.storage import mirror as mirrors


@pytest.fixture
def uri(server, tmp_path, monkeypatch, request):
    """A storage of its own for each test, and this machine's working copies under tmp_path."""
    for name, value in object_store.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STATTEN_CACHE", str(tmp_path / "here"))
    monkeypatch.setattr(mirrors, "SETTLE", 0.01)
    return server.uri(request.node.name.replace("[", "-").replace("]", ""))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another machine: the next working copies lie in another folder."""

    def move(name: str) -> None:
        monkeypatch.setenv("STATTEN_CACHE", str(tmp_path / name))

    return move
