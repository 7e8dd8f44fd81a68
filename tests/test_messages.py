"""Only the command line speaks of its options: strings of the library name parameters (`windows=`), and so do its
docstrings. `cli/messages.py` puts options in their place.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import layercoop_fast

ROOT = Path(layercoop_fast.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# Options of other programs, and of scripts that are no part of the library.
OTHERS = {
    "bench/running.py": {"--size", "--benchmark-json", "--model", "--out", "--tiny"},  # of pytest and of the benchmarks
    "export/gguf.py": {"--merge"},  # of llama-gguf-split
    "report/card_sections.py": {"--from", "--model-path", "--out", "--outfile"},  # commands that a model card shows
    "tasks/plugin.py": {"--model", "--tasks"},  # of lm_eval
    "workers/ray_cluster.py": {"--head"},  # of ray start
    "workers/ray_workers.py": {"--num-cpus", "--num-gpus", "--num-"},  # of ray start
}


def spoken(path: Path) -> list[tuple[int, str]]:
    """The options in a file's strings, with their lines."""
    constants = (
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)
    )
    return [
        (node.lineno, option)
        for node in constants
        if isinstance(node.value, str)
        for option in OPTION.findall(node.value)
    ]


def test_the_library_speaks_of_no_options() -> None:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name != "__main__.py" and not name.startswith("cli/"):
            others = OTHERS.get(name, set())
            found += [f"{name}:{line} {option}" for line, option in spoken(path) if option not in others]
    assert not found, "options of the command line in the library:\n" + "\n".join(found)
