"""The README's Python examples run as printed, one after the other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tiny_models import save_tiny

README = Path(__file__).parents[1] / "README.md"


def test_the_python_examples_run_as_printed(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    assert all(len(block.strip().splitlines()) <= 11 for block in blocks)
    save_tiny(tmp_path / "my-model")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "block evaluations instead of 1200" in done.stdout
    assert "removed: [" in done.stdout
    assert (tmp_path / "my-pruned-model" / "layercoop.json").exists()
