"""`export --push-to-hub` against a stand-in for the hub's server: what is uploaded opens again, and what is said else."""

import base64
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from evaluated import make_run

import statten

USER = "me"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files meets; files lie in `server.files`, by repository and name."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        url = f"http://{self.headers['Host']}/{USER}/mine"
        if self.headers["Authorization"] != "Bearer hf_right":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self.answer(200, {"url": url})
        if self.path == "/api/validate-yaml":
            assert "library_name: timm" in json.loads(body)["content"]
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.answer(200, {"files": files})
        if self.path == f"/api/models/{USER}/mine/commit/main":
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(200, {"commitUrl": f"{url}/commit/1", "commitOid": "1", "hookOutput": "", "success": True})
        return self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self.answer(401, {"error": "Invalid username or password."})

    def answer(self, code: int, document: dict) -> None:
        text = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Not on the test's screen."""


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(monkeypatch):
    """The user's, before `work` makes another home: neurons are not compiled again."""
    monkeypatch.setenv("STATTEN_CACHE", os.environ.get("STATTEN_CACHE") or str(Path.home() / ".cache" / "statten"))


@pytest.fixture
def words(cache, work, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(work / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    make_run(work / "runs" / "first", scale__neuron_backend="torch")
    return ["export", "first", "--output", "out", "--format", "safetensors", "--push-to-hub", f"{USER}/mine"]


def test_an_export_is_pushed_and_opens_again(hub, words, work, typed, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    code, out, err = typed(*words, "--json")
    assert code == 0, err
    assert json.loads(out)["hub"].endswith(f"/{USER}/mine")
    assert [(made["name"], made["organization"]) for made in hub.made] == [("mine", USER)]
    assert hub.files.keys() == {path.name for path in (work / "out").iterdir()} >= {"model.safetensors", "README.md"}
    (work / "fetched").mkdir()
    for name, content in hub.files.items():
        (work / "fetched" / name).write_bytes(content)
    assert statten.load_model("fetched").classes == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "--push-to-hub: there is no token of the Hugging Face Hub; type `hf auth login`, or set $HF_TOKEN"),
        ({f"{USER}/mine": "a b"}, "--push-to-hub: must be USER/NAME as on the Hugging Face Hub, but got 'a b'"),
        ({"safetensors": "published"}, "--push-to-hub: needs --format safetensors, which timm opens"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_written(change, sentence, words, work, typed):
    code, _, err = typed(*(change.get(word, word) for word in words))
    assert code == 2 and sentence in " ".join(err.split()) and not (work / "out").exists()


def test_a_hub_that_refuses_leaves_the_folder(hub, words, work, typed, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, _, err = typed(*words)
    assert code == 1 and "out is whole, push it with: hf upload me/mine out" in " ".join(err.split())
    assert (work / "out" / "model.safetensors").exists() and not hub.files
