"""The house: rooms import rooms above them alone, no circles, four rooms know Ray, imports are light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import statten

PACKAGE = Path(statten.__file__).parent
# From the top: a room may import those before it. Rooms of one line do not import each other.
ORDER = [
    {"errors", "machine", "registry"}, {"records"}, {"config", "files"}, {"space", "data", "neurons"}, {"models"}, {"metrics"},
    {"storage"}, {"training"}, {"display"}, {"cluster"}, {"search", "jobs", "bench"}, {"evaluation"},
    {"report", "prediction", "doctor"}, {"api", "cli", "__main__"},
]  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
RAY = {"cluster", "search", "jobs", "doctor"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
NAMES = {
    ".".join(("statten", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path for path in MODULES
}
LINES = 700
"""Of a file at most: what is longer holds two things."""
LOOSE = 6
"""Modules beside the folders at most."""
DEFINE = {"search", "report", "cli"}
"""Folders whose __init__ defines something: names that are imported when first used, a command's function, `main`."""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, running: bool = False) -> set[str]:
    """Modules that a file imports, inside functions too; `running`: without those that only a type checker sees."""
    tree, seen = ast.parse(path.read_text()), set()
    unseen = [
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body for inner in ast.walk(statement)
    ]  # fmt: skip
    for node in ast.walk(tree):
        if running and node in unseen:
            continue
        if isinstance(node, ast.Import):
            seen |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES.keys()
            seen |= inner | ({node.module} if len(inner) < len(node.names) and node.module != "statten" else set())
    return seen


def test_every_room_has_its_place():
    assert {room(path) for path in MODULES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above(path):
    for name in imports(path):
        if name.startswith("statten."):
            other = name.split(".")[1]
            assert RANK[other] < RANK[room(path)] or other == room(path) or room(path) == "__main__", f"{path} imports {name}"
        if name.split(".")[0] == "ray":
            assert room(path) in RAY, f"{path} imports {name}"


def test_no_modules_import_each_other_in_a_circle():
    """Lazy imports included: a circle that is broken by hand is one all the same."""
    graph = {name: imports(path, running=True) & NAMES.keys() - {name} for name, path in NAMES.items()}
    # A package's __init__ runs before its modules, but need not know them.
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" imports ".join(reversed(circle.args[1])))


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=lambda path: path.parent.name)
def test_folders_hold_no_code_in_their_init(path):
    defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not defined or room(path) in DEFINE, f"{path} defines {defined}"


def test_the_house_stays_small():
    loose = [path.name for path in MODULES if path.parent == PACKAGE]
    assert len(loose) <= LOOSE, loose
    sizes = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert [f"{name}: {lines}" for name, lines in sizes.items() if lines > LINES] == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("statten", "torch ray timm optuna"),
        ("statten.cli", "torch ray timm optuna"),
        ("statten.training.worker", "ray optuna"),
        ("statten.cluster.trainer", "ray timm torchvision"),
        ("statten.search.launch", "ray timm torchvision"),
        ("statten.evaluation, statten.prediction", "ray timm torchvision"),
    ],
)
def test_imports_stay_light(module, heavy):
    code = f"import sys, {module}; print([m for m in {heavy.split()} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]", shown.stdout
