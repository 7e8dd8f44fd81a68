"""What measuring masks will take, for a model of which only the shape is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layercoop_fast.errors import RequestError
from layercoop_fast.masked.plan import build_plan


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide the cost of a llama-shaped model.

    Attributes:
        layers, hidden, intermediate, vocabulary: as in a Hugging Face config.
        kv_ratio: key-value heads over query heads.
        itemsize: bytes a number.
    """

    layers: int
    hidden: int
    intermediate: int
    kv_ratio: float
    vocabulary: int
    itemsize: int

    def check(self) -> None:
        """Raise `RequestError` for a size that no model has."""
        for name, value in asdict(self).items():
            if not 0 < value < float("inf"):
                raise RequestError(f"{name}={value}: it must be above 0")
        if self.layers < 2:
            raise RequestError("layers= must be at least 2: of one layer none can be removed")

    @property
    def block_params(self) -> int:
        """Weights of one block: query and output, key and value, gate, up and down."""
        return int(self.hidden * (2 * self.hidden * (1 + self.kv_ratio) + 3 * self.intermediate))

    def block_flop(self, tokens: int) -> float:
        """FLOP of one block on one window: two a weight and token, and half of the attention square, twice."""
        return 2.0 * self.block_params * tokens + 2.0 * self.hidden * tokens * tokens

    def head_flop(self, tokens: int) -> float:
        """FLOP of the head on one window."""
        return 2.0 * self.hidden * self.vocabulary * tokens


def forecast(
    shape: ModelShape, masks: NDArray[np.bool_], *, windows: int, tokens: int, memory: int | None, tflops: float
) -> dict[str, Any]:
    """Sharing, memory, FLOP and hours of measuring `masks` (bool [M, L]) on `windows` × `tokens` tokens.

    `memory` bounds the stored states in bytes (None: all that the plan wants); `tflops` is the machine's speed in
    TFLOP/s. The hours count matrix products alone.

    Raises `RequestError` when the memory holds no state.
    """
    state = windows * tokens * shape.hidden * shape.itemsize
    if memory is not None and memory < state:
        raise RequestError(
            f"a budget of {memory} bytes holds no stored state: the smallest that works is {state} bytes"
        )
    plan = build_plan(masks, None if memory is None else memory // state)
    block = windows * shape.block_flop(tokens)
    head = plan.n_unique * windows * shape.head_flop(tokens)
    evaluations = {"naive": plan.naive, "skip": plan.skip, "plan": plan.plan, "scheduled": plan.scheduled}
    # The published way scores every mask it drew, repeats included.
    repeats = len(masks) / plan.n_unique
    flop = {
        way: count * block + head * (repeats if way in ("naive", "skip") else 1) for way, count in evaluations.items()
    }
    return {
        "shape": asdict(shape),
        "masks": len(masks),
        "unique": plan.n_unique,
        "windows": windows,
        "tokens": tokens,
        "evaluations": evaluations,
        "evaluations_a_mask": round(plan.scheduled / plan.n_unique, 3),
        "gflop": {way: round(count / 1e9, 1) for way, count in flop.items()},
        "tflops": tflops,
        "hours": {way: round(count / (tflops * 1e12) / 3600, 4) for way, count in flop.items()},
        "bytes": {
            "weights": (shape.layers * shape.block_params + 2 * shape.vocabulary * shape.hidden) * shape.itemsize,
            "state": state,
            "peak_states": plan.peak_states * state,
        },
        "peak_states": plan.peak_states,
    }
