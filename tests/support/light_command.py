"""A command in a process of its own, which must not load heavy libraries."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys, layercoop_fast, layercoop_fast.cli.app
from layercoop_fast.__main__ import main
sys.argv = {arguments}
try: main()
except SystemExit as left: assert not left.code
heavy = {heavy} & set(sys.modules)
assert not heavy, heavy
"""


def run_without(heavy: set[str], *arguments: object) -> str:
    """What the command prints; fails where it fails, or loads one of these modules."""
    script = _SCRIPT.format(arguments=["layercoop-fast", *map(str, arguments)], heavy=heavy)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
