"""Rooms import only rooms above them, importing them is cheap, and only three of them know Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import statten

PACKAGE = Path(statten.__file__).parent
# From the top: a room may import those before it. Modules of one line may import each other.
ORDER = [
    {"config"}, {"files"}, {"remote", "page"}, {"neurons"}, {"models"}, {"data"}, {"losses"}, {"metrics"}, {"energy"},
    {"checkpoint"}, {"runs"}, {"faults", "watchdog"}, {"train"}, {"display"}, {"cluster", "recovery", "costs"}, {"nodes"},
    {"trainer"}, {"search"}, {"evaluation"}, {"report"}, {"overview"}, {"bench"}, {"demo"}, {"jobs"}, {"parcel"},
    {"submission"}, {"probe"}, {"doctor"}, {"cli_jobs"}, {"cli"},
]  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
RAY = {"cluster", "nodes", "trainer", "search", "submission", "probe", "recovery", "costs"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "statten" else {node.module}
    return found


def test_every_room_has_its_place():
    assert {room(path) for path in MODULES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above(path):
    for name in imports(path):
        if name.startswith("statten."):
            other = name.split(".")[1]
            assert RANK[other] < RANK[room(path)] or other == room(path), f"{path} imports {name}"
        if name.split(".")[0] == "ray":
            assert room(path) in RAY, f"{path} imports {name}"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("statten", "torch ray timm optuna"), ("statten.cli", "torch ray timm optuna"), ("statten.training.worker", "ray optuna")],
)
def test_imports_stay_light(module, heavy):
    code = f"import sys, {module}; print([m for m in {heavy.split()} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]", shown.stdout
