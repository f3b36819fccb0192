"""Private names of other libraries that we lean on, each with its reason: an upgrade that takes one away fails here."""

import ast
import importlib
import inspect
from pathlib import Path
from typing import NamedTuple

import pytest

import statten

PACKAGE = Path(statten.__file__).parent


class Name(NamedTuple):
    """A private name and what it is needed for."""

    owner: str
    """Where it lives: `module` or `module:Class`."""
    name: str
    where: str
    """The file that uses it."""
    reason: str


NAMES = [
    Name(
        "ray._raylet", "Config", "cluster/session.py",
        "a process that joins a cluster must read RAY_AUTH_MODE anew; Ray reads it at import",
    ),
    Name(
        "ray._raylet", "AuthenticationTokenLoader", "cluster/session.py",
        "the same of the token, which may have been copied here since",
    ),
    Name(
        "ray._private.services", "get_ray_address_from_environment", "cluster/session.py",
        "what `auto` means, to knock there before Ray waits",
    ),
    Name(
        "ray._private.ray_constants", "ENABLE_RAY_CLUSTER", "cluster/session.py",
        "a Ray of this machine alone must listen on loopback alone; Ray replaces 127.0.0.1 by the machine's address",
    ),
    Name(
        "ray.train.v2._internal.execution.callback", "ControllerCallback", "cluster/recovery.py",
        "to write a checkpoint before elastic workers are replaced",
    ),
    Name(
        "ray.train.v2._internal.execution.callback", "WorkerGroupCallback", "cluster/recovery.py",
        "to know the workers that a resize will end",
    ),
    Name(
        "ray.train.v2._internal.execution.callback", "WorkerCallback", "cluster/recovery.py",
        "to notice SIGTERM in the worker's main thread",
    ),
    Name(
        "ray.train.v2._internal.execution.context", "get_train_context", "cluster/recovery.py",
        "whether the worker's node is drained",
    ),
    Name(
        "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer", "_register_sigint_handler", "cluster/trainer.py",
        "Ctrl-C must end the command with a sentence; Ray's own handler ends the process with 0",
    ),
    Name(
        "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer", "_create_default_callbacks", "cluster/trainer.py",
        "a process for Ray Data would be started, which nobody uses",
    ),
    Name(
        "ray.train.v2._internal.callbacks.datasets", "DatasetsCallback", "cluster/trainer.py",
        "it starts that process",
    ),
    Name(
        "ray.dashboard.modules.job.sdk:JobSubmissionClient", "_do_request", "jobs/client.py",
        "to give every request a time limit",
    ),
    Name(
        "ray.dashboard.modules.job.sdk:JobSubmissionClient", "_server_ray_version", "jobs/client.py",
        "Ray's version on the other side, which the client has asked for",
    ),
    Name("optuna.study:Study", "_storage", "search/searcher.py", "Trial.report refuses studies of several objectives"),
    Name(
        "optuna.trial:Trial", "_trial_id", "search/searcher.py",
        "the same, and to take up a trial that a killed driver left running",
    ),
    Name("optuna.study:Study", "_storage", "search/rebuild.py", "to write down what a running trial was begun with"),
    Name("optuna.trial:FrozenTrial", "_trial_id", "search/rebuild.py", "the same"),
    Name("optuna.samplers:CmaEsSampler", "_init_optimizer", "search/samplers.py", "CMA-ES begins at the base config"),
    Name("optuna.samplers:CmaEsSampler", "_get_solution_trials", "search/samplers.py", "trials of one generation"),
    Name("optuna.samplers:CmaEsSampler", "_restore_optimizer", "search/samplers.py", "so that no pickle of a study is run"),
    Name(
        "optuna.study:Study", "_get_trials", "search/samplers.py",
        "a study that shows a sampler the trials that it should see",
    ),
    Name(
        "cupy.cuda.compiler", "_set_kernel_cache_backend", "neurons/cupy_backend.py",
        "compiled kernels belong into our folder, also where CuPy was imported before",
    ),
    Name("cupy.cuda", "_compiler_cache", "neurons/cupy_backend.py", "the same"),
    Name("torch:Tensor", "_version", "training/preflight.py", "to count once what the backward pass keeps several times"),
    Name(
        "torch.distributed.distributed_c10d", "_get_default_store", "training/worker.py",
        "ranks agree in it after which step to leave",
    ),
    Name("concurrent.futures:ThreadPoolExecutor", "_max_workers", "data/work.py", "how much is begun ahead"),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.name)
def test_private_names_are_there(name):
    module, _, attribute = name.owner.partition(":")
    if module.startswith("cupy"):
        pytest.importorskip("cupy", reason="CuPy is not installed")
    owner = importlib.import_module(module)
    owner = getattr(owner, attribute) if attribute else owner
    there = hasattr(owner, name.name)
    if not there and attribute:  # what only an object has: its class, or one above, sets it
        there = any(f"self.{name.name}" in inspect.getsource(kind) for kind in owner.__mro__ if kind is not object)
    assert there, f"{name.where} needs {name.owner} {name.name}: {name.reason}"


def defined(path: Path) -> set[str]:
    """Names of functions, attributes and variables that a file gives."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return found | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


OWN = set().union(*map(defined, PACKAGE.rglob("*.py")))


def private(path: Path) -> set[str]:
    """Private names of others that a file uses: of modules and imports, and attributes that this package does not define."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("statten"):
            inside = any(part.startswith("_") for part in node.module.split("."))
            used |= {alias.name for alias in node.names if inside or alias.name.startswith("_")}
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            used |= {node.attr} - OWN
    return used


def test_every_private_name_is_listed():
    """A name that is used and not listed, or listed and no longer used, is said with its file."""
    modules = {"_raylet": "Config", "_private": "get_ray_address_from_environment"}  # of which what is used is listed
    used = {
        (str(path.relative_to(PACKAGE)), modules.get(name, name)) for path in PACKAGE.rglob("*.py") for name in private(path)
    }
    listed = {(name.where, name.name) for name in NAMES}
    assert used - listed == set(), "used, and not listed"
    assert [name for name in NAMES if name.name not in (PACKAGE / name.where).read_text()] == [], "listed, and not used"
