"""The pages of the site: every public name is on one, every document is reached, links between files become links."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import layercoop_fast

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hook, where mkdocs need not be installed."""
    for name in ("mkdocs", "mkdocs.structure", "mkdocs.structure.files"):
        stand_in: Any = ModuleType(name)
        stand_in.File = stand_in.Files = object
        monkeypatch.setitem(sys.modules, name, stand_in)
    spec = importlib.util.spec_from_file_location("site_pages", DOCS / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: layercoop_fast\.(\w+)$", text, re.MULTILINE)
    assert len(named) == len(set(named))
    assert "`Choices`" in text
    assert {*named, "Choices", "__version__"} == set(layercoop_fast.__all__)


def test_every_document_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": ([\w/-]+\.md)$", menu, re.MULTILINE))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    numbered = {name for name in there if re.match(r"decisions/\d", name)}
    assert there - numbered == listed - {"CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "history.md"}


def test_the_index_for_programs_names_pages_that_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS / "llms.txt").read_text(encoding="utf-8")):
        assert (DOCS / target).is_file(), target


@pytest.mark.parametrize(
    ("given", "folder", "page", "expected"),
    [
        ("[a](repair.md#x)", "docs/guides", "guides/heal.md", "[a](repair.md#x)"),
        ("[a](../performance.md)", "docs/guides", "guides/heal.md", "[a](../performance.md)"),
        ("[a](docs/mutants.md)", ".", "CONTRIBUTING.md", "[a](mutants.md)"),
        ("[a](../CONTRIBUTING.md#figures)", "docs", "design.md", "[a](CONTRIBUTING.md#figures)"),
        (
            "[`c.py`](../../examples/own_utility.py)",
            "docs/guides",
            "guides/x.md",
            "[`c.py`](../examples/own_utility.md)",
        ),
        ("[examples/](../examples/)", "docs", "README.md", "[examples/](examples/README.md)"),
        ("[a](decisions/)", "docs", "design.md", "[a](decisions/README.md)"),
        ("[the core](../csrc/plan.cpp)", "docs", "design.md", "`the core`"),
        ("[a](https://example.org) [b](#here)", "docs", "design.md", "[a](https://example.org) [b](#here)"),
        ("![a picture](pictures/repair.svg)", "docs", "method.md", "![a picture](pictures/repair.svg)"),
    ],
)
def test_links_between_files_become_links_between_pages(
    given: str, folder: str, page: str, expected: str, pages: Any
) -> None:
    assert pages._linked(given, ROOT / folder, page) == expected


def test_programs_and_notebooks_become_pages(pages: Any) -> None:
    outside = pages._outside()
    assert {"CONTRIBUTING.md", "examples/own_utility.md", "examples/prune_and_look.md"} <= set(outside.values())
    program = pages._page(ROOT / "examples" / "own_utility.py")
    assert program.startswith("# own_utility.py\n\n```python\n")
    notebook = pages._page(ROOT / "examples" / "a_game_of_your_own.ipynb")
    assert notebook.startswith("# A game of your own\n")
    assert notebook.count("```python") == 5
    assert pages._about(ROOT / "examples" / "prune_and_look.ipynb") == "Prune and look"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    assert all(f'id="layercoop_fast.{name}"' in reference for name in ("prune", "ModelGame", "LayerSkipModel"))
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|<link[^>]*href)="?https?://', home), "it loads from elsewhere"
    site = tmp_path / "site"
    pages = list(site.rglob("*.html"))
    led = {page: re.findall(r'(?:href|src)="?([^"\s>]+)', page.read_text(encoding="utf-8")) for page in pages}
    led[site / "llms.txt"] = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    nowhere = [
        (page.relative_to(site), link)
        for page, links in led.items()
        for link in links
        if not re.match(r"[a-z]+:|#|/", link) and not (page.parent / link.split("#")[0].split("?")[0]).exists()
    ]
    assert not nowhere
    assert not list(site.rglob("__pycache__"))
