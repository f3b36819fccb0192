"""For mkdocs: files of the repository that pages link to become part of the site, at their place in the repository.

Links are written as they hold in the repository, such as `../cluster/README.md`; here they are turned into those of the site,
where docs/ is the top. A notebook becomes a page too, without a plugin: its cells, and the notebook itself to download.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?)(?=\))")


def on_files(files: Any, config: Any) -> Any:
    """Add every linked file outside docs/, and those that these link to."""
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        files.append(File.generated(config, f"{notebook.stem}.md", content=page_of(notebook)))
    found, waiting = set(), [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting += ["CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md", "benchmarks/README.md"]
    while waiting:
        path = waiting.pop()
        if path in found or not (ROOT / path).is_file():
            continue
        found.add(path)
        if not path.startswith("docs/") and path != "README.md":
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            waiting += [posixpath.normpath(posixpath.join(posixpath.dirname(path), m[1])) for m in LINK.finditer(text)]
    return files


def page_of(notebook: Path) -> str:
    """A notebook in Markdown."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    blocks = ["".join(cell["source"]) for cell in cells]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            blocks[number] = f"```python\n{blocks[number]}\n```"
    heading, *others = blocks
    return "\n\n".join([heading, f"This page is a notebook: [download it]({notebook.name}).", *others]) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links of the repository into links of the site."""
    site = page.file.src_uri
    path = f"docs/{site}" if (ROOT / "docs" / site).is_file() else site

    def turned(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        target = "index.md" if target == "README.md" else target.removeprefix("docs/")
        if target.endswith(".ipynb") and site != (its_page := f"{target.removesuffix('.ipynb')}.md"):
            target = its_page
        return posixpath.relpath(target, posixpath.dirname(site) or ".") + match[2]

    return LINK.sub(turned, markdown)
