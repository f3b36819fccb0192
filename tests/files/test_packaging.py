"""What is shipped around the package: lock files, make targets, CI entry, wheel."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
OVERRIDDEN = {canonicalize_name(Requirement(r).name) for r in PYPROJECT["tool"]["uv"]["override-dependencies"]}
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = ["requirements.lock", "requirements-cuda.lock"]
ENTRY = re.compile(r"([a-z0-9-]+)==([^ ;]+)(?: ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def entries(lock: str) -> dict[str, str]:
    """Package -> version; every line that is no comment belongs to an entry with hashes."""
    text = re.sub(r"^#.*\n", "", (ROOT / lock).read_text(), flags=re.M)
    assert ENTRY.sub("", text) == "", f"{lock} holds something else than pinned packages with hashes"
    return {match[1]: match[2] for match in ENTRY.finditer(text)}


@pytest.mark.parametrize(
    ("lock", "requirement"),
    [
        ("requirements.lock", r)
        for r in [*PROJECT["dependencies"], *EXTRAS["bench"], *EXTRAS["onnx"], *EXTRAS["log"], *EXTRAS["dev"]]
        if not r.startswith("statten[")
    ]
    + [("requirements-cuda.lock", r) for r in EXTRAS["cuda"]],
)
def test_lock_has_every_dependency_in_range(lock, requirement):
    wanted, locked = Requirement(requirement), entries(lock)
    assert locked[canonicalize_name(wanted.name)] in wanted.specifier, "make lock"


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_place(lock):
    """The index is the user's choice, and no folder of ours exists elsewhere."""
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host|@|(^|\s)(-e|\.{0,2}/)", text, flags=re.M)


def test_lock_is_closed():
    """What the locked packages need, and is needed on this machine, is locked too: nothing is resolved while installing."""
    locked, missing = entries("requirements.lock"), set()
    for name in locked:
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        wanted = [r for r in map(Requirement, needed) if not r.marker or r.marker.evaluate({"extra": ""})]
        missing |= {f"{name} needs {r}" for r in wanted if canonicalize_name(r.name) not in {*locked, *OVERRIDDEN}}
    assert missing == set()


def test_every_import_is_declared():
    """Packages that statten imports are its own dependencies, not somebody else's."""
    needed = [*PROJECT["dependencies"], *EXTRAS["cuda"], *EXTRAS["onnx"], *EXTRAS["log"]]
    declared = {canonicalize_name(Requirement(r).name) for r in needed}
    peers = {canonicalize_name(Requirement(r).name) for r in EXTRAS["bench"]}
    # pydantic pins its core; CuPy need not be installed here.
    bringing = {**metadata.packages_distributions(), "pydantic_core": ["pydantic"], "cupy": ["cupy-cuda13x"]}
    for path in (ROOT / "statten").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"statten"}:
                allowed = declared | peers if path.name == "bench.py" else declared
                assert {canonicalize_name(d) for d in bringing[name]} & allowed, f"{path} imports {name}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, so that no earlier build lends anything."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "statten", copy / "statten", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(out), str(copy)], check=True, capture_output=True, text=True)
    return zipfile.ZipFile(next(out.glob("statten-*.whl")))


def test_wheel_holds_the_package(wheel):
    """All modules, recipes and the type marker, and nothing beside the package."""
    held, package = set(wheel.namelist()), ROOT / "statten"
    for path in [*package.rglob("*.py"), *package.rglob("*.yaml"), package / "py.typed"]:
        assert str(path.relative_to(ROOT)) in held
    assert {name.partition("/")[0] for name in held} == {"statten", f"statten-{PROJECT['version']}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_wheel_works_on_its_own(wheel, tmp_path):
    """Recipes load and the command starts from the wheel alone, away from the repository."""
    wheel.extractall(tmp_path)
    code = "import statten.cli, statten.config as c; print(statten.__file__); [c.load_config(n) for n in c.recipe_names()]"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert done.stdout.startswith(str(tmp_path))


def test_the_range_of_torch_is_one():
    """`.ci/torch-range` reads its oldest from pyproject.toml, and the docs say both ends."""
    first, beyond = re.findall(r'^ *"torch>=(\d+\.\d+),<(\d+\.\d+)",$', (ROOT / "pyproject.toml").read_text(), flags=re.M)[0]
    major, minor = beyond.split(".")
    last = f"{major}.{int(minor) - 1}"
    assert f"| torch | {first} to {last}, " in (ROOT / "docs" / "quickstart.md").read_text()
    script = (ROOT / ".ci" / "torch-range").read_text()
    (pattern,) = re.findall(r"sed -n '(s/.*torch>=.*)' pyproject\.toml", script)
    found = subprocess.run(["sed", "-n", pattern, "pyproject.toml"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == first


def test_versions_agree():
    import statten

    assert statten.__version__ == PROJECT["version"] == metadata.version("statten")
    assert (
        f"[{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
        or "[Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    )


@pytest.mark.parametrize("name", ["run", "setup", "torch-range"])
def test_scripts_can_run(name):
    script = ROOT / ".ci" / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("target", ["setup", "demo", "test", "check", "range", "lock", "clean", "help"])
def test_make_targets(target):
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT, check=True)
    assert {"demo": "statten demo", "test": "pytest", "check": "pytest"}.get(target, "") in done.stdout
    assert ".ci/setup" in done.stdout or target in ("clean", "help")


def test_tests_come_last():
    """Whoever reads the last line of `make test` reads pytest's."""
    steps = subprocess.run(["make", "-n", "test"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    order = [steps.index(step) for step in (".ci/setup", "ruff check", "ruff format --check", "mypy", "pytest")]
    assert order == sorted(order)


def test_help_names_every_target():
    shown = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert phony and all(f"make {target} " in shown for target in phony[1].split())


def test_setup_says_what_is_missing(tmp_path):
    """No Python that fits: one plain sentence, and nothing is made."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "setup", "PYTHON=/bin/false"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "setup: PYTHON=/bin/false is not a Python of 3.11 to 3.14." in done.stderr
    assert not (tmp_path / ".venv").exists()
