"""The documentation is true: it builds, its links lead somewhere, its commands run, its generated pages are fresh."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from statten import cli
from statten.cli.options import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
README_LENGTH = 9000


class Block(NamedTuple):
    """A fenced block of code."""

    page: Path
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run, as the comment above it says."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page; `line` is that of the first line inside."""
    opened, lines = None, page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not (fence := re.match(r"\s*```(\w*)", line)):
            continue
        if opened is None:
            opened = number, fence[1]
        else:
            first, language = opened
            above = re.fullmatch(r"<!-- not run(?: here)?: (.+) -->", lines[first - 2]) if first > 1 else None
            yield Block(page, first + 1, language, "\n".join(lines[first : number - 1]), above[1] if above else "")
            opened = None
    assert opened is None, f"{page.relative_to(ROOT)}:{opened[0]}: this block has no end"


def prose(page: Path) -> list[str]:
    """The lines of a page, with those of code blocks empty."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in blocks(page):
        for number in range(block.line - 1, block.line - 1 + block.text.count("\n") + 1):
            lines[number] = ""
    return lines


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    found: set[str] = set()
    for line in prose(page):
        if heading := re.match(r"#+ (.*)", line):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading[1]).strip().lower()
            found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text)))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The site and the links.


class Loads(HTMLParser):
    """What a browser loads by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        kinds = (values.get("rel") or "").split()
        link = tag == "link" and not {"canonical", "next", "prev", "alternate"} & set(kinds)
        loaded = values.get("href") if link else values.get("src")
        if loaded:
            self.found.append((loaded, self.getpos()[0]))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_and_holds_every_page(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    wanted = {f"{page.stem}.html" for page in PAGES if page.name != "README.md"}
    assert wanted | {"cluster/index.html", "benchmarks/index.html"} <= pages
    assert (site / "cluster" / "local.sh").read_text() == (ROOT / "cluster" / "local.sh").read_text()
    assert (site / "search" / "search_index.json").stat().st_size > 100_000


def test_no_page_loads_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text, loads = page.read_text(encoding="utf-8"), Loads()
        loads.feed(text)
        for loaded, line in loads.found:
            assert not re.match(r"(https?:)?//", loaded), f"{page.relative_to(site)}:{line}: loads {loaded}"
        assert 'class="mermaid"' not in text, f"{page.relative_to(site)}: the theme fetches what draws such a diagram"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style.relative_to(site)


def test_the_reference_shows_every_name(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    for number, line in enumerate((ROOT / "docs" / "api.md").read_text().splitlines(), 1):
        if line.startswith("::: "):
            name = line.removeprefix("::: ")
            assert f'id="{name}"' in text, f"docs/api.md:{number}: {name} is not shown"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for number, line in enumerate(prose(page), 1):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
            where = f"{page.relative_to(ROOT)}:{number}: {target}"
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = unquote(target).partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{where}: there is no such file"
            assert file.is_relative_to(ROOT), f"{where}: leads out of the repository"
            if anchor:
                assert anchor in anchors(file), f"{where}: has no such heading"


def test_a_wrong_link_is_seen(tmp_path):
    """The check itself can fail."""
    page = tmp_path / "page.md"
    page.write_text("# One two\n\n```sh\n[no](link)\n```\n\n## 4. `three`: four\n")
    assert anchors(page) == {"one-two", "4-three-four"}
    assert "[no](link)" not in prose(page) and [b.line for b in blocks(page)] == [4]


# ---------------------------------------------------------------------------------------------------------------------
# README and what is generated.


def test_readme_is_short():
    length = len((ROOT / "README.md").read_text(encoding="utf-8"))
    assert length <= README_LENGTH, f"README.md has {length} characters: move something to docs/"


def commands(group: typer.core.TyperGroup, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield from commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else [f"{prefix}{name}"]


def test_readme_names_every_command_and_no_other():
    there, named = set(commands(typer.main.get_command(app))), set()
    for number, line in enumerate((ROOT / "README.md").read_text().splitlines(), 1):
        if not line.startswith("| `statten "):
            continue
        for typed in re.findall(r"`([^`]+)`", line.split("|")[1]):
            words = typed.removeprefix("statten ").split()
            found = {" ".join(words[:count]) for count in (1, 2)} & there
            assert found, f"README.md:{number}: there is no command `{typed}`"
            named |= found
    assert there - named == set(), "README.md: the table lacks these commands"


def module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("name", ["config.md", "recipes.md"])
def test_generated_pages_are_fresh(name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()
    wanted = module(ROOT / "docs" / "generate.py").PAGES[name]().splitlines()
    for number, (is_there, should_be) in enumerate(zip(written, wanted, strict=False), 1):
        assert is_there == should_be, f"docs/{name}:{number}: run python docs/generate.py"
    assert len(written) == len(wanted), f"docs/{name}: run python docs/generate.py"


def test_every_field_has_a_row():
    from statten.config import field_paths

    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for path in field_paths():
        row = re.search(rf"^\| `{re.escape(path)}` \| (.+) \| (.+) \| (.+) \|$", text, re.M)
        assert row and all(cell.strip() for cell in row.groups()), f"docs/config.md: {path} has no whole row"


def test_the_extending_page_shows_what_is_tested():
    """Its files and lines are those that tests/integration/test_extending.py trains with."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for registry, (file, code, line, choice) in module(ROOT / "tests/integration/test_extending.py").ENTRIES.items():
        for part in (f"`statten/{file}`", code.strip("\n"), line, f"in `{registry}`", f"--set {choice}"):
            assert part in text, f"docs/extending.md: lacks what is tested of {registry}:\n{part}"


def test_the_citation_is_that_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["references"][0]["title"] == "Spiking Transformer with Spatial-Temporal Attention"


# ---------------------------------------------------------------------------------------------------------------------
# Code blocks. The rule is in CONTRIBUTING.md.

SHELL = {page: [b for b in blocks(page) if b.language == "sh"] for page in PAGES}
PYTHON = [b for page in PAGES for b in blocks(page) if b.language == "python" and not b.reason]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder with the declarative files of the repository, pictures in class folders, and one of a digit."""
    for name in ("search_spaces", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    draw = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(100 * label, 100 * label + 100, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_line(line: str, where: str) -> None:
    """Run a line of a shell block: `statten` in this process, which saves its imports, and the rest in a shell."""
    words, shown = shlex.split(line, comments=True), io.StringIO()
    if words[:1] != ["statten"]:
        done = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{where}: {line}\n{done.stdout}{done.stderr}"
        return
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), pytest.raises(SystemExit) as ended:
        cli.main(words[1:])
    assert ended.value.code == 0, f"{where}: {line}\n{shown.getvalue()}"


@pytest.mark.parametrize("page", [page for page in PAGES if SHELL[page]], ids=lambda page: page.stem)
def test_shell_blocks_run(page, folder, ray):
    for block in SHELL[page]:
        for number, line in enumerate(block.text.splitlines(), block.line):
            if line.strip():
                run_line(line, f"{page.relative_to(ROOT)}:{number}")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_blocks_run(block, folder, ray):
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, {})
    except Exception as error:
        raise AssertionError(f"{block.place}: {type(error).__name__}: {error}") from error


def test_a_wrong_command_is_seen(folder):
    """The check itself can fail, and names the place."""
    with pytest.raises(AssertionError, match=r"page\.md:3: statten train digitz"):
        run_line("statten train digitz", "page.md:3")


def test_blocks_keep_the_rule():
    """Every block says what it is; what is not run and could be says why."""
    known = {"sh", "bash", "console", "python", "yaml", "text", ""}
    for page in PAGES:
        for block in blocks(page):
            assert block.language in known, f"{block.place}: {block.language} is no language of the rule in CONTRIBUTING.md"
    assert [block.place for block in blocks(PAGES[0]) if block.language == "python" and block.reason] == []
    assert {page.stem for page in PAGES if SHELL[page]} >= {"quickstart", "data"} and len(PYTHON) >= 3
