"""How many local workers a machine has room for. Free of torch: this is checked before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.text import read_json
from layercoop_fast.system import machine

BASE_BYTES = 300 * 10**6
"""What a worker takes besides the weights: interpreter, torch, transformers (docs/clusters.md)."""


def check_count(count: int, checkpoint: dict[str, Any]) -> None:
    """Refuse more workers of this machine than it has processors, or memory for; one is always allowed.

    `checkpoint` says how it is opened (`Workers`). Raises `RequestError` with the number that would be right.
    """
    if count < 1:
        raise RequestError(f"workers={count}: at least 1 worker is needed")
    if count > (most := machine.processors()):
        raise RequestError(
            f"workers={count}: this process may use {most} processors, and each worker needs one: give {most} at most"
        )
    each, free = worker_bytes(checkpoint), machine.free_bytes()
    if count > (most := max(1, free // each)):
        raise RequestError(
            f"workers={count}: each takes about {each / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are "
            f"free: give {most} at most"
        )


def worker_bytes(checkpoint: dict[str, Any]) -> int:
    """About how many bytes of memory a worker takes that opens this checkpoint; of a hub name the weights are unknown.

    Weights that stay as they lie in the files are shared by all workers, but most are joined on the fast path, and that
    is a copy for each: all are counted. On a GPU they are in its memory.
    """
    if checkpoint["device"] != "cpu":
        return BASE_BYTES
    folder = Path(checkpoint["name"])
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
    widened = checkpoint["dtype"] in ("float32", "fp32") and _is_16_bit(folder / "config.json")
    return BASE_BYTES + weights * (2 if widened else 1)


def _is_16_bit(config: Path) -> bool:
    """Whether a checkpoint's weights are of 16 bits, as far as its config says; what is wrong with it shows later."""
    try:
        found = read_json(config)
        return (found.get("dtype") or found.get("torch_dtype")) in ("bfloat16", "float16")
    except (OSError, ValueError, AttributeError, TypeError):
        return False
