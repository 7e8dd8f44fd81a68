"""Write docs/models.md from a run of every family of `matrix.py`; takes about a minute.

python tests/families/write_page.py
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent)]


def main() -> None:
    import torch

    matrix = importlib.import_module("matrix")
    if not matrix.FOUR_BIT:
        raise SystemExit("bitsandbytes is not installed: pip install -e '.[bitsandbytes]'")
    torch.set_num_threads(1)
    rows = []
    for name in matrix.ROWS:
        rows.append(matrix.examine(name))
        print(matrix.line(rows[-1]), flush=True)
    matrix.PAGE.write_text(matrix.page(rows))


if __name__ == "__main__":
    main()
