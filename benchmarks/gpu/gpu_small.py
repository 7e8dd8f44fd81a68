"""The engine and decoding in the shape of a llama of 1B, where launches weigh more than in one of 8B."""

from __future__ import annotations

import gpu_decode
import gpu_engine
from chips import Bench
from parts import Rows


def rows(bench: Bench) -> Rows:
    """One shape of the engine, and ours of decoding."""
    size = "tiny" if bench.tiny else "1b"
    yield from gpu_engine.of_size(bench, size, [(2, 6, 6) if bench.tiny else (10, 128, 500)])
    yield from gpu_decode.of_size(bench, size)
