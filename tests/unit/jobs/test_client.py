"""What is checked before a job is sent, and when it is started again."""

import http.server
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from statten.errors import UserError
from statten.jobs import client, file
from statten.jobs.client import dashboard_url, rehearse
from statten.jobs.file import JobFile, check_submitted_storage, run_with_retries
from statten.jobs.submit import from_file

SPACE = "model.timesteps: {choices: [1, 2]}\nmodel.block_size: {divisors_of: model.timesteps}\n"


@pytest.fixture
def work(work):
    (work / "space.yaml").write_text(SPACE)
    return work


def job_file(work, text, name="job.yaml"):
    (work / name).write_text(text)
    return work / name


# ---------------------------------------------------------------------------------------------------------------------
# What is sent.


def test_a_job_file_travels_unchanged(work):
    path = job_file(work, "command: tune\nrecipe: digits\nspace: space.yaml\nstorage: runs\n")
    sent = from_file(path, work, ["train.epochs=2"])
    assert sent.name == "job"
    assert sent.entrypoint == (
        f"python -m statten.cli run job.yaml --resume --name job --set train.epochs=2 --storage {work}/runs"
    )
    assert {path.name for _, path in sent.files} == {"job.yaml", "space.yaml"}
    package = rehearse(sent, work, lambda package: None)
    assert set(package.names) == {"job.yaml", "space.yaml"}


def test_relative_places_become_absolute_and_stay_at_home(work):
    (work / "images").mkdir()
    (work / "images" / "x.png").touch()
    text = "command: train\nrecipe: cifar10_2_256\nname: mine\noverrides: {data.root: images}\n"
    sent = from_file(job_file(work, text), work, storage="s3://bucket/runs")
    assert sent.name == "mine" and sent.entrypoint.endswith(f"--storage s3://bucket/runs --set data.root={work}/images")
    assert set(rehearse(sent, work, lambda package: None).names) == {"job.yaml", "space.yaml"}


def test_a_folder_at_home_is_the_one_here(work, monkeypatch):
    """A machine of the cluster may have another home."""
    monkeypatch.setenv("HOME", str(work / "me"))
    text = "command: train\nrecipe: cifar10_2_256\nname: mine\noverrides: {data.root: ~/images}\nstorage: ~/runs\n"
    sent = from_file(job_file(work, text), work)
    assert sent.entrypoint.endswith(f"--storage {work}/me/runs --set data.root={work}/me/images")


def test_an_evaluation_has_a_name_but_no_folder(work):
    sent = from_file(job_file(work, "command: evaluate\ntarget: x\nstorage: /shared\n", "check.yaml"), work)
    assert sent.name == "check" and sent.entrypoint == "python -m statten.cli run check.yaml --resume --storage /shared"


@pytest.mark.parametrize(
    ("words", "entrypoint"),
    [
        ("train digits --name n --storage /s", "train digits --name n --storage /s --resume"),
        ("tune digits --space space.yaml --name n --storage runs",
         "tune digits --space space.yaml --name n --storage runs --resume --storage {work}/runs"),
        ("evaluate n --storage /s --set 'model.timesteps=2'", "evaluate n --storage /s --set model.timesteps=2"),
        ("data check imagenet --root /data", "data check imagenet --root /data"),
        ("train cifar10_2_256 --name n --set data.root=data",
         "train cifar10_2_256 --name n --set data.root=data --resume --set data.root={work}/data"),
    ],
)  # fmt: skip
def test_a_plain_command_travels(words, entrypoint, work, typed):
    code, out, err = typed("submit", "--dry-run", "--", *shlex.split(words))
    assert (code, err) == (0, "")
    assert f"python -m statten.cli {entrypoint.format(work=work)}\nNothing was sent.\n" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["job.yaml", "--set", "model.dept=1"], "model.dept: no such field; did you mean model.depth?"),
        (["gone.yaml"], "gone.yaml: no such file"),
        (["--", "train", "digitz"], "no recipe or file is called 'digitz'; did you mean digits?"),
        (["--", "train", "digits", "--set", "train.epochs=0"], "digits: train.epochs: must be at least 1, but got 0"),
        (["--", "train", "digits", "--epoch-count", "1"], "No such option: --epoch-count"),
        (["--", "train", "digits", "--epochs", "0"], "digits: train.epochs: must be at least 1, but got 0"),
        (["--", "tune", "digits"], "Missing option '--space'"),
        (["--", "tune", "digits", "--space", "spice.yaml"], "--space: no such file: spice.yaml"),
        (["--", "trian", "digits"], "trian: no such command or job file; did you mean train?"),
        (["--", "doctor"], "doctor: is no command for a cluster; it runs here"),
        (["--", "run", "job.yaml"], "run: submit the job file itself: statten submit jobs/FILE.yaml"),
        (["--name", "n", "--", "train", "digits"], "--set, --name and --storage of a plain command stand behind `--`"),
        (["job.yaml", "--name", "a/b"], "--name: must be letters, digits"),
        (["job.yaml", "--address", "ray://head:10001"], "--address: must be the URL of a Ray dashboard such as http://HEAD:8265"),
        (["job.yaml", "--address", "http://127.0.0.1:1"], "--address: nothing answers at http://127.0.0.1:1"),
        (["job.yaml", "--storage", "s3://key:hidden@bucket/runs"], "credentials have no place in a URI"),
        (["/elsewhere.yaml"], "/elsewhere.yaml: no such file"),
        (["outside.yaml", "--working-dir", "inner"], "outside.yaml lies outside of inner, the folder that travels"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_before_anything_is_sent(arguments, sentence, work, typed):
    job_file(work, "command: train\nrecipe: digits\nstorage: runs\n")
    job_file(work, "command: train\nrecipe: digits\nstorage: runs\n", "outside.yaml")
    (work / "inner").mkdir()
    arguments = [*arguments[:1], "--dry-run", *arguments[1:]] if "--working-dir" in arguments else arguments
    code, out, err = typed("submit", *arguments)
    assert code == 2 and sentence in err and "Traceback" not in err and "submitted" not in out
    assert all(line.startswith("statten: ") for line in err.splitlines())


def test_a_token_has_no_place_in_a_job():
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN has no place in it"):
        JobFile(command="train", recipe="digits", runtime={"environment": {"RAY_AUTH_TOKEN": "x"}})


def test_where_a_cluster_is(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dashboard_url() == "http://127.0.0.1:8265"
    (tmp_path / ".ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        local = f"http://127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / ".ray" / "dashboard_url").write_text(f"{local}\n")  # as cluster/local.sh does
        assert dashboard_url() == local and dashboard_url("head:8265") == "http://head:8265"
    assert dashboard_url() == "http://127.0.0.1:8265", "it was killed, and took nothing away"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://head:443/ray/")
    assert dashboard_url() == "https://head:443/ray" and dashboard_url("head:8265") == "http://head:8265"
    for wrong in ("ray://head:1", "http://", "http://user:word@head", "http://head:port", "auto://x"):
        with pytest.raises(UserError, match="must be the URL of a Ray dashboard"):
            dashboard_url(wrong)


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [(200, b"<html>", "is no Ray dashboard"), (404, b"", "is no Ray dashboard"), (418, b"", "is no Ray dashboard"),
     (200, b"{}", "is no Ray dashboard"), (503, b"", "nothing answers at")],
)  # fmt: skip
def test_an_address_where_somebody_else_answers(status, body, sentence, work):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=sentence):
            client.JobClient(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked_for_what_is_here_and_named_for_what_is_not(variable, work, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    body = json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"}).encode()

    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:9")
    with http.server.HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost", "127.1"):
            assert client.JobClient(f"http://{host}:{server.server_port}").version() == "2.60.0"
        server.shutdown()
    with pytest.raises(UserError, match=rf"nothing answers at http://head\.example:8265; .*; \${variable} sends it") as caught:
        client.JobClient("http://head.example:8265")
    assert "secret" not in str(caught.value)


def test_rays_variables_do_not_win_over_an_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with client._only_address("http://here:1"):
        from ray.dashboard.utils import get_address_for_submission_client

        assert get_address_for_submission_client(None) == "http://here:1"
    assert os.environ["RAY_ADDRESS"] == "10.0.0.9:6379" and "RAY_API_SERVER_ADDRESS" not in os.environ


# ---------------------------------------------------------------------------------------------------------------------
# Where it is written.


def test_a_submitted_job_finds_its_storage_or_says_so(tmp_path):
    check_submitted_storage(tmp_path)
    check_submitted_storage(tmp_path / "runs")
    with pytest.raises(UserError, match=f"there is no {tmp_path}/a on the cluster to make runs in; name a folder"):
        check_submitted_storage(tmp_path / "a" / "runs")
    with pytest.raises(UserError, match=r"sets no \$STATTEN_STORAGE, and runs would be lost with the job"):
        check_submitted_storage(type(tmp_path)("runs"))


# ---------------------------------------------------------------------------------------------------------------------
# Again after a failure.

CHILD = """
import pathlib, sys
tried = pathlib.Path("tried")
lines = tried.read_text().splitlines() if tried.exists() else []
tried.write_text("\\n".join([*lines, " ".join(sys.argv[1:])]) + "\\n")
codes = pathlib.Path("codes").read_text().split()
code = int(codes[len(lines)])
if code < 0:
    import os
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("codes", "retries", "last"),
    [("0", 3, 0), ("2", 3, 2), ("1 0", 3, 0), ("-9 1 0", 3, 0), ("1 2", 3, 2), ("1 1 1", 2, 1), ("-9", 0, 137)],
)
def test_a_job_is_started_again_but_not_for_a_users_mistake(codes, retries, last, work, monkeypatch, capfd):
    """With a command in place of ours that ends as it is told, and writes down with which words it was started."""
    (work / "codes").write_text(codes)
    real = file._child
    monkeypatch.setattr(file, "_child", lambda command: real([sys.executable, "-c", CHILD, *command[3:]]))
    job = JobFile(command="train", recipe="digits", name="n", retries=retries)
    assert run_with_retries(job, ["train", "digits"]) == last
    starts = (work / "tried").read_text().splitlines()
    assert starts == ["train digits", *["train digits --resume"] * (len(codes.split()) - 1)]
    assert capfd.readouterr().err.count("it is started again") == len(starts) - 1


def test_retries_need_a_name_to_go_on_with():
    with pytest.raises(ValueError, match="`name` must be given with retries 2: by its name the train is found again"):
        JobFile(command="train", recipe="digits", retries=2)
    assert JobFile(command="evaluate", target="x", retries=2).retries == 2


def test_whoever_stops_a_job_stops_its_command(tmp_path):
    code = "import sys; from statten.cli.stopping import stoppable; from statten.jobs.file import _child\n"
    code += "with stoppable():\n    sys.exit(_child([sys.executable, '-c', sys.argv[1]]))"
    sleeper = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, sleeper]) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_list_of_jobs_keeps_ids_whole_and_leaves_out_the_doctors(monkeypatch, typed):
    long = "imagenet-8-768-with-a-name-that-is-longer-than-a-terminal-is-wide-but-is-copied-into-the-next-command-12"
    fields = {"exit_code": None, "message": "", "command": "", "started": "2026-01-01T00:00:00.0Z", "ended": None}
    listed = [client.Job(name, name, "RUNNING", **fields) for name in (long, f"{client.PROBE}1767225600-1")]
    monkeypatch.setattr(client.JobClient, "__init__", lambda self, address: None)
    monkeypatch.setattr(client.JobClient, "jobs", lambda self: listed)
    code, out, _ = typed("jobs")
    assert code == 0 and f"{long}  RUNNING" in out and client.PROBE not in out
