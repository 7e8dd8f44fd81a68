"""A tiny model of random numbers in C++, without torch: `play()` takes a step of it on the team of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layercoop_fast import _C

HIDDEN, HEADS, WIDTH, WORDS, LAYERS, TOKENS = 24, 3, 8, 50, 3, 40


def packed(rows: int, columns: int) -> _C.PackedMatrix:
    matrix = _C.PackedMatrix("fp32", rows, columns)
    weights = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32) / 4
    matrix.fill(0, weights, "fp32")
    return matrix


def make() -> _C.DecodeModel:
    model = _C.DecodeModel(hidden=HIDDEN, heads=HEADS, kv_heads=1, width=WIDTH, inner=16, scale=0.3, activation="silu")
    model.set_rotaries([])
    norm = (np.ones(HIDDEN, dtype=np.float32), 1e-5)
    for _ in range(LAYERS):
        model.add_block(
            attention_norm=norm,
            qkv=packed((HEADS + 2) * WIDTH, HIDDEN),
            output=packed(HIDDEN, HEADS * WIDTH),
            mlp_norm=norm,
            gate_up=packed(32, HIDDEN),
            down=packed(HIDDEN, 16),
        )
    head = packed(WORDS, HIDDEN)
    model.set_ends(embedding=head, final_norm=norm, head=head)
    return model


def play(model: Any, tokens: int = TOKENS) -> npt.NDArray[np.float32]:
    """Logits of so many tokens from an empty memory."""
    pages = -(-tokens // _C.KV_PAGE)
    memory = np.zeros(LAYERS * pages * model.kv_page_bytes("fp32"), dtype=np.uint8)
    numbers = np.arange(tokens, dtype=np.int32)
    logits = np.empty((tokens, WORDS), dtype=np.float32)
    model.run(
        memory,
        "fp32",
        tokens=numbers,
        positions=numbers,
        sequence=np.zeros(tokens, dtype=np.int32),
        parent=np.full(tokens, -1, dtype=np.int32),
        fork=np.zeros(tokens, dtype=np.int32),
        masks=np.full((1, LAYERS), 3, dtype=np.uint8),
        tables=np.arange(LAYERS * pages, dtype=np.int32).reshape(1, LAYERS, pages),
        wanted=numbers,
        logits=logits,
    )
    return logits
