"""The Python blocks of README and docs run as printed, those of a document one after the other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import save_tiny

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_of(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, folder: Path) -> str:
    save_tiny(folder / "my-model")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_python_example_runs_as_printed(tmp_path: Path) -> None:
    (block,) = python_of(ROOT / "README.md")
    assert len(block.strip().splitlines()) <= 11
    said = run(block, tmp_path)
    assert "block evaluations instead of 1200" in said
    assert "removed: [" in said
    assert (tmp_path / "my-pruned-model" / "layercoop.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("document", [each for each in DOCUMENTS[1:] if python_of(each)], ids=lambda path: path.stem)
def test_the_python_blocks_of_a_document_run_as_printed(document: Path, tmp_path: Path) -> None:
    run("\n".join(python_of(document)), tmp_path)
