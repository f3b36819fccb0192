"""What travels with a submitted job, and above all what does not."""

import os
import subprocess
import zipfile

import pytest

from statten.errors import UserError
from statten.jobs import package
from statten.jobs.package import pack, shown, survey, travelling

TOKEN = "5f" * 32
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n-----END OPENSSH PRIVATE KEY-----\n"
TRAVELS = {
    "train.py": "x", "jobs/a.yaml": "x", "statten/data/__init__.py": "", "statten/data/events.py": "x", "tokenizer.py": "x",
    "search_spaces/s.yaml": "x", "README.md": "about the token", "bin/run.sh": "x", "environment.yaml": "x",
}  # fmt: skip
STAYS = [
    ".git/config", ".venv/bin/python", "venv/lib/x.py", "mine/pyvenv.cfg", "mine/lib/x.py", "conda/conda-meta/x",
    "node_modules/x.js", "__pycache__/a.pyc", "statten/__pycache__/a.pyc", ".pytest_cache/x", ".mypy_cache/x",
    "x.egg-info/PKG-INFO", "data/images/1.png", "datasets/x", "runs/a/config.yaml", "wandb/x", "sweeps/first/config.yaml",
    "sweeps/first/sweep.json", "old/config.yaml", "old/run.json", "storage/x", "images/1.png",
]  # fmt: skip
SECRETS = [
    ".env", ".env.local", "prod.env", "auth_token", "my_token.txt", "secrets.yaml", "credentials.json", "aws-credentials",
    "key.pem", "server.key", "id_rsa", "id_ed25519", "id_rsa.pub", ".netrc", ".pypirc", "service-account.json",
    "deep/inside/Secret.JSON", "kubeconfig", "passwords.csv",
]  # fmt: skip


def write(folder, name, text="x"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "work"
    for name, text in TRAVELS.items():
        write(folder, name, text)
    for name in (*STAYS, *SECRETS, ".ssh/config", ".aws/config"):
        write(folder, name)
    write(folder, "notes.txt", f"the cluster's is {TOKEN}\n")
    write(folder, "deploy.txt", KEY)
    write(tmp_path, "outside.txt")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "images2").symlink_to(folder / "data")
    return folder


def test_code_travels_and_all_else_stays(folder):
    kept, secrets = survey(folder, [folder / "storage", folder / "images"], TOKEN)
    assert set(kept) == set(TRAVELS)
    assert set(secrets) == {*SECRETS, ".ssh", ".aws", "notes.txt", "deploy.txt"}


PEM = KEY.replace("\n", "\\n")
RANDOM = "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5bC7d"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", f'{{"type": "service_account", "private_key": "{PEM}"}}'),
        ("values.yaml", "tls: |\n    " + KEY.replace("\n", "\n    ")),
        ("deploy.py", f'KEY = """{KEY}"""'),
        ("big.txt", "x" * 2**21 + "\n" + KEY),
        ("notes.md", f"ghp_{RANDOM}"),
        ("run.sh", f"export HF={'hf_' + RANDOM}"),
        ("boto", f"aws_secret_access_key = {RANDOM}"),
        ("aws.txt", "AKIAIOSFODNN7EXAMPLE"),
        ("gh.yml", f"github.com:\n    oauth_token: {RANDOM}"),
        ("putty.txt", "PuTTY-User-Key-File-2: ssh-rsa"),
        *((name, "x") for name in (".my.cnf", ".boto", ".s3cfg", "rclone.conf", ".dockercfg", ".bash_history", "me.ppk")),
        *((name, "x") for name in (".config/gh/hosts.yml", "home/hosts.yml", ".python_history", "kaggle.json")),
    ],
)
def test_secrets_stay_by_name_and_by_what_they_hold(tmp_path, name, text):
    write(tmp_path, name, text)
    kept, secrets = survey(tmp_path)
    assert kept == [] and secrets == [name.partition("/")[0] if name.startswith(".config/") else name]


@pytest.mark.parametrize(
    "text",
    [
        "begins with `-----BEGIN PRIVATE KEY-----`, and", 'marker = b"-----BEGIN RSA PRIVATE KEY-----"\nexpected = 1\n',
        "ghp_ and hf_ tokens", "sk-learn and task-oriented", "the asian AKIA", "oauth_token: ${TOKEN}", "sha256: " + "0a" * 32,
    ],
)  # fmt: skip
def test_what_only_speaks_of_secrets_travels(tmp_path, text):
    write(tmp_path, "docs.txt", text)
    assert survey(tmp_path) == (["docs.txt"], [])


def test_what_git_ignores_stays(folder):
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    write(folder, ".gitignore", "*.bin\nscratch/\n")
    write(folder, "weights.bin")
    write(folder, "scratch/x.py")
    kept, _ = survey(folder, [folder / "storage", folder / "images"], TOKEN)
    assert set(kept) == {*TRAVELS, ".gitignore"}


def test_a_package_depends_on_names_and_contents_alone(folder, tmp_path):
    first = pack(folder, tmp_path / "a.zip", [folder / "storage", folder / "images"], TOKEN)
    os.utime(folder / "train.py", (1, 1))
    second = pack(folder, tmp_path / "b.zip", [folder / "storage", folder / "images"], TOKEN)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert first.names == second.names and first.bytes == (tmp_path / "a.zip").stat().st_size
    with zipfile.ZipFile(first.file) as archive:
        assert set(archive.namelist()) == set(TRAVELS) and archive.read("README.md") == b"about the token"


def test_too_much_names_the_largest(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "LIMIT", 20_000)
    (folder / "big").mkdir()
    (folder / "big" / "noise.npy").write_bytes(os.urandom(30_000))
    with pytest.raises(UserError, match=r"at most 19\.5 KiB .* the largest are big \(29\.3 KiB\), ") as caught:
        pack(folder, tmp_path / "a.zip", [], TOKEN)
    assert ".gitignore" in str(caught.value)


def test_a_needed_file_that_stays_is_named(folder, tmp_path):
    kept, _ = survey(folder, [], TOKEN)
    needed = [
        ("job file", folder / "jobs/a.yaml"),
        ("space", tmp_path / "outside.txt"),
        ("recipe", folder / "data/images/1.png"),
    ]
    outside, inside = travelling(kept, folder, needed)
    assert outside.startswith(f"space: {tmp_path}/outside.txt lies outside of {folder}")
    assert inside.startswith(f"recipe: {folder}/data/images/1.png would be left at home")


def test_sizes_for_people():
    assert [shown(n) for n in (0, 1023, 1024, 1536, 2**20, 512 * 2**20, 3 * 2**40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "512.0 MiB", "3072.0 GiB",
    ]  # fmt: skip
