"""For mkdocs: files of the repository that pages link to become part of the site, at their place in the repository.

Links are written as they hold in the repository, such as `../cluster/README.md`; here they are turned into those of the site,
where docs/ is the top.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?)(?=\))")


def on_files(files: Any, config: Any) -> Any:
    """Add every linked file outside docs/, and those that these link to."""
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


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links of the repository into links of the site."""
    site = page.file.src_uri
    path = f"docs/{site}" if (ROOT / "docs" / site).is_file() else site

    def turned(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        target = "index.md" if target == "README.md" else target.removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(site) or ".") + match[2]

    return LINK.sub(turned, markdown)
