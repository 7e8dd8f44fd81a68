"""What the site needs besides the pages of `docs/`: an mkdocs hook.

Documents of the root and the programs of `examples/` become pages, and links between files of the repository links
between pages. A link to a file that is no page becomes its name in code, so that no link of the site leads nowhere.
Next to each page lies its Markdown, which `llms.txt` names.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from layercoop_fast.bench.history import page, read_history

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def _outside() -> dict[Path, str]:
    """Files that are pages though they do not lie in `docs/`, and the names of these pages."""
    found = {ROOT / f"{name}.md": f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")}
    examples = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.ipynb")])
    return found | {path: f"examples/{path.stem}.md" for path in examples}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of other files, one that lists the examples, and the history of benchmarks."""
    history = page(read_history(DOCS / "history.jsonl"))
    files.append(File.generated(config, "history.md", content=history))
    lines = []
    for path, name in _outside().items():
        text = _page(path)
        files.append(File.generated(config, name, content=_linked(text, path.parent, name)))
        if path.parent.name == "examples":
            lines.append(f"- [{path.name}]({posixpath.basename(name)}): {_about(path)}")
    listed = "# Examples\n\nPrograms to copy from; each runs on a tiny model of its own.\n\n" + "\n".join(lines)
    files.append(File.generated(config, "examples/README.md", content=listed + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links of a page of `docs/`; the result is also written beside the page."""
    path = DOCS / page.file.src_uri
    if path.is_file():
        markdown = _linked(markdown, path.parent, page.file.src_uri)
    beside = Path(config["site_dir"]) / page.file.src_uri
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(markdown, encoding="utf-8")
    return markdown


def _page(path: Path) -> str:
    """A file as Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return f"# {path.name}\n\n```python\n{text.rstrip()}\n```\n"
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        parts = ["".join(cell["source"]).rstrip() for cell in cells]
        fenced = (
            part if cell["cell_type"] == "markdown" else f"```python\n{part}\n```"
            for cell, part in zip(cells, parts, strict=True)
        )
        return "\n\n".join(fenced) + "\n"
    return text


def _about(path: Path) -> str:
    """The first sentence of a program, the heading of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "".join(json.loads(text)["cells"][0]["source"]).splitlines()[0].removeprefix("# ")
    return text.removeprefix('"""').split("\n\n")[0].split('"""')[0].replace("\n", " ").strip()


def _linked(markdown: str, folder: Path, page: str) -> str:
    """Markdown whose links, relative to a folder of the repository, lead from a page to pages."""

    def link(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, _, heading = target.partition("#")
        if "://" in target or target.startswith("mailto:") or not path:
            return match[0]
        there = _page_of((folder / path).resolve())
        if there is None:
            return text if "`" in text else f"`{text}`"
        there = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"[{text}]({there}{'#' + heading if heading else ''})"

    return _LINK.sub(link, markdown)


def _page_of(path: Path) -> str | None:
    """The page that a file of the repository is; None where it is none."""
    if path == ROOT / "examples":
        return "examples/README.md"
    if path == ROOT / "README.md":
        return "README.md"
    if path.is_dir() and (path / "README.md").is_file():
        path = path / "README.md"
    if path.is_relative_to(DOCS) and path.is_file():
        return path.relative_to(DOCS).as_posix()
    return _outside().get(path)
