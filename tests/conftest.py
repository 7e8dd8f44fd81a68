"""Shared by every test: helper modules beside this file (`tiny_models`) are importable by their plain name.

Pytest runs with `--import-mode=importlib`, which leaves `sys.path` alone, so it is extended here. Nothing heavy is
imported: a test of the lazy command line must be able to see an interpreter without torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# No test needs the network; without these a mistyped path would be looked up at a hub that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The arrays are small: on a machine that is busy, NumPy's threads would mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
