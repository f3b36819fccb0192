"""Faults put into the code one at a time by mutmut, and those that no fast test sees.

    python tests/mutation/mutants.py split order          every fault of two parts
    python tests/mutation/mutants.py mirror --sample 150  of many a fixed sample; --seconds 280 stops then, and may be repeated
    python tests/mutation/mutants.py --table              what is known of all parts, with the lines that nobody held

It needs mutmut (`pip install mutmut`), which the suite does not, and works in copies below --work. A part is a file with the
fast tests that belong to it. Left out are faults in text, in what an error or a log line says, and in functions with a
decorator (properties, context managers), which mutmut does not change.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNIT = "tests/unit"
SURVIVED, UNSEEN = 0, 33
"""mutmut's codes for a fault that all tests let pass, and one that no test runs."""


@dataclass(frozen=True)
class Part:
    """A file, and the tests that must see its faults."""

    file: str
    tests: tuple[str, ...]
    without: str = ""
    """Words of slow tests among them, as `pytest -k "not (...)"` takes them."""
    functions: tuple[str, ...] = ()
    """Of a file that does more than one thing, the functions that count; empty means all."""
    isolation: str = "fork"
    """From which process mutmut forks: `forkserver` where tests start threads of C++ libraries, which no fork survives."""


STORES = (f"{UNIT}/storage/test_agreeing.py", f"{UNIT}/storage/test_mirror.py")
SLOW = "gs or killed_anywhere or is_down or stays_away or dead_writers or without_credentials or clock_is_wrong"
PARTS = {
    "checkpoint": Part("storage/checkpoint.py", (f"{UNIT}/storage/test_checkpoint.py",)),
    "writer": Part(
        "storage/writer.py",
        (
            f"{UNIT}/storage/test_writer.py",
            f"{UNIT}/storage/test_surviving.py::test_an_attempt_that_another_one_followed_writes_nothing_more",
            f"{UNIT}/storage/test_surviving.py::test_a_line_of_the_metrics_that_was_cut_off_is_gone_before_the_next_is_added",
            f"{UNIT}/storage/test_agreeing.py::test_what_rank_0_writes_is_in_the_store_before_others_hear_of_it",
        ),
        isolation="forkserver",
    ),
    "run": Part(
        "storage/run.py",
        (
            f"{UNIT}/storage/test_run.py",
            f"{UNIT}/storage/test_agreeing.py::test_a_run_is_opened_refreshed_and_handed_over_by_its_attempt_alone",
            f"{UNIT}/storage/test_agreeing.py::test_names_that_are_taken_in_the_store",
        ),
        isolation="forkserver",
    ),
    "store": Part("storage/store.py", (f"{UNIT}/storage/test_store.py",)),
    "mirror": Part("storage/mirror.py", STORES, SLOW, isolation="forkserver"),
    "faults": Part("training/faults.py", (f"{UNIT}/training/test_faults.py",)),
    "recovery": Part("cluster/recovery.py", (f"{UNIT}/cluster/test_decisions.py",), functions=("after_exception", "_short_of")),
    "nodes": Part("cluster/nodes.py", (f"{UNIT}/cluster/test_decisions.py",), functions=("place", "capacity", "alive_nodes")),
    "split": Part("data/split.py", (f"{UNIT}/data/test_split.py",)),
    "order": Part("data/order.py", (f"{UNIT}/data/test_order.py",)),
    "counter": Part(
        "data/counter.py", (f"{UNIT}/data/test_order.py", f"{UNIT}/data/test_data.py::test_random_numbers_are_fixed_for_ever")
    ),
    "training": Part(
        "training/loop.py",
        (f"{UNIT}/training/test_steps.py", f"{UNIT}/training/test_loop.py", f"{UNIT}/training/test_elastic.py"),
        "resuming or survives or unless_told or amp or reports_what or footprint or graphs",
    ),
    "energy": Part(
        "metrics/energy.py", (f"{UNIT}/metrics/test_energy.py",), "spikingjelly or sdsa or totals or pairs or alone"
    ),
    "searcher": Part("search/searcher.py", (f"{UNIT}/search/test_asking.py",)),
}


def copied(part: Part, folder: Path) -> None:
    """Copy the working tree, once, and tell mutmut what to change and which tests to run."""
    if folder.exists():
        return
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, files)):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    arguments = ["-p", "no:cacheprovider", *(["-k", f"not ({part.without})"] if part.without else [])]
    settings = {
        "source_paths": ["statten"], "only_mutate": [f"statten/{part.file}"], "pytest_add_cli_args": arguments,
        "pytest_add_cli_args_test_selection": list(part.tests), "also_copy": ["search_spaces", "jobs", "docs"],
        "timeout_multiplier": 3, "timeout_constant": 5, "process_isolation": part.isolation,
    }  # fmt: skip
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with (folder / "pyproject.toml").open("a") as file:
        file.write("\n".join(["\n[tool.mutmut]", *lines]) + "\n")


def faults(part: Part, folder: Path) -> list[str]:
    """The names of a part's faults that count, as mutmut calls them."""
    os.chdir(folder)  # mutmut reads its settings from where it is
    import libcst
    from mutmut.mutation.file_mutation import create_mutations
    from mutmut.mutation.trampoline_templates import mangle_function_name
    from mutmut.utils.format_utils import get_mutant_name

    path = Path("statten") / part.file
    module, mutations, *_ = create_mutations(str(path), path.read_text())
    said: set[int] = set()
    owner: dict[int, str | None] = {}

    def look(node: libcst.CSTNode, in_words: bool, of: str | None) -> None:
        calls_log = isinstance(node, libcst.Call) and module.code_for_node(node.func).startswith("log.")
        in_words = in_words or isinstance(node, libcst.Raise) or calls_log
        if in_words:
            said.add(id(node))
        owner[id(node)] = of
        for child in node.children:
            look(child, in_words, node.name.value if isinstance(node, libcst.ClassDef) else of)

    look(module, False, None)
    names, numbers = [], dict[int, int]()
    for mutation in mutations:
        function = mutation.contained_by_top_level_function
        if not isinstance(function, libcst.FunctionDef):
            continue
        number = numbers[id(function)] = numbers.get(id(function), 0) + 1
        counts = not part.functions or function.name.value in part.functions
        if counts and id(mutation.original_node) not in said and not isinstance(mutation.original_node, libcst.BaseString):
            mangled = mangle_function_name(name=function.name.value, class_name=owner[id(function)])
            names.append(get_mutant_name(path, f"{mangled}__mutmut_{number}"))
    return names


def known(part: Part, folder: Path) -> dict[str, int]:
    """What became of the faults that were tried."""
    path = folder / "mutants" / "statten" / f"{part.file}.meta"
    codes = json.loads(path.read_text())["exit_code_by_key"] if path.is_file() else {}
    return {name: code for name, code in codes.items() if code is not None}


def attempt(part: Part, folder: Path, sample: int | None, seed: int, seconds: float | None) -> None:
    """Try the faults of a part, or a sample of them, that were not tried yet."""
    copied(part, folder)
    names = faults(part, folder)
    if sample is not None and sample < len(names):
        names = sorted(random.Random(f"{seed} {part.file}").sample(names, sample))
    (folder / "chosen.json").write_text(json.dumps({"all": len(faults(part, folder)), "chosen": names}))
    left = [name for name in names if name not in known(part, folder)]
    if not left:
        return
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(folder / "mutants"), *sys.path[1:]]),
    }
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *left]
    (folder / "mutants").mkdir(exist_ok=True)  # Python does not look again into a folder of its path that was not there
    with (folder / "mutmut.log").open("w") as log:
        running = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = running.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # what was tried is written down
            running.wait()
            return
    if code:
        sys.exit(f"{part.file}: mutmut ended with {code}, see {log.name}")


def table(work: Path, parts: list[str]) -> None:
    """Print what is known of some parts as Markdown, and every fault that lives."""
    print("| part | faults | tried | killed | survived | in lines that no test runs |\n|---|---|---|---|---|---|")
    living: list[tuple[str, str]] = []
    for name in parts:
        part, folder = PARTS[name], work / name
        if not (folder / "chosen.json").is_file():
            continue
        chosen, codes = json.loads((folder / "chosen.json").read_text()), known(part, folder)
        tried = {fault: codes[fault] for fault in chosen["chosen"] if fault in codes}
        survived, unseen = ([fault for fault, code in tried.items() if code == kind] for kind in (SURVIVED, UNSEEN))
        killed = len(tried) - len(survived) - len(unseen)
        print(f"| {name} | {chosen['all']} | {len(tried)} | {killed} | {len(survived)} | {len(unseen)} |")
        living += [(name, fault) for fault in [*survived, *unseen]]
    for name, fault in living:
        shown = subprocess.run(
            [sys.executable, "-m", "mutmut", "show", fault], cwd=work / name, capture_output=True, text=True, check=False
        ).stdout
        changed = [line for line in shown.splitlines() if line.startswith(("-", "+")) and line[:3] not in ("---", "+++")]
        print("\n".join(["", fault, *changed]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS])
    parser.add_argument("--sample", type=int, help="faults of each part at most, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop then; the same command goes on")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "statten-mutants", help="folder for copies")
    parser.add_argument("--table", action="store_true", help="print what is known")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    for name in arguments.parts:
        attempt(PARTS[name], work / name, arguments.sample, arguments.seed, arguments.seconds)
    table(work, list(PARTS) if arguments.table else arguments.parts)


if __name__ == "__main__":
    main()
