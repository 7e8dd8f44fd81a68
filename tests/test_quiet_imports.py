"""What torchao says while transformers imports it does not reach the standard error of a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LIBRARY = """
import logging
logging.getLogger(__name__).warning("Failed to load a file for GPUs")
logging.getLogger("torch.utils._pytree").warning("deprecated")
logging.getLogger(__name__).error("an error is still told")
"""


def test_its_warnings_are_not_heard_and_its_errors_are(tmp_path: Path) -> None:
    (tmp_path / "torchao.py").write_text(LIBRARY)

    def said(first: str) -> str:
        paths = [str(tmp_path), str(Path(__file__).parents[1])]
        done = subprocess.run(
            [sys.executable, "-c", f"{first}; import torchao"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stderr

    assert said("import layercoop_fast") == "an error is still told\n"
    assert "Failed to load" in said("pass")
    asked = "import logging; logging.getLogger('torchao').setLevel('INFO'); import layercoop_fast"
    assert "Failed to load" in said(asked)


def test_commands_are_described_without_torch_and_numpy() -> None:
    """A help text or a wrong option is answered at once; importing torch takes seconds, numpy a tenth of one."""
    asked = "import sys, layercoop_fast.cli.app; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
