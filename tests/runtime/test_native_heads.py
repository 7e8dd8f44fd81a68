"""What the native executor does at the borders of its threads' shares, and behind the head."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from layercoop_fast import _C
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.native import NativeExecutor

pytestmark = pytest.mark.usefixtures("restore_core")

LAYERS = 2
PROMPT = [5, 80, 17, 203, 44]


def executor_of(model: Any) -> NativeExecutor:
    return NativeExecutor(copy.deepcopy(model), "fp32", np.full(LAYERS, 3, dtype=np.uint8), 1 << 20)


def logits_of(executor: NativeExecutor, threads: int) -> torch.Tensor:
    _C.set_num_threads(threads)
    return executor.run([Chunk(executor.sequence(np.ones(LAYERS, dtype=bool)), PROMPT, wanted=len(PROMPT))])


def test_biases_fall_where_they_belong_whoever_adds_them() -> None:
    executor = executor_of(tiny_model("qwen2", LAYERS))
    alone = logits_of(executor, 1)
    for threads in (2, 3, 5):
        assert torch.equal(logits_of(executor, threads), alone)


def test_of_equal_logits_the_first_word_is_chosen_whoever_finds_it() -> None:
    model = tiny_model("llama", LAYERS)
    head = model.lm_head.weight
    with torch.no_grad():
        head[:] = head[0]
    executor = executor_of(model)
    for threads in (1, 3):
        _C.set_num_threads(threads)
        chunk = Chunk(executor.sequence(np.ones(LAYERS, dtype=bool)), PROMPT, wanted=len(PROMPT))
        assert executor.best([chunk]).tolist() == [0] * len(PROMPT)


def test_logits_that_the_model_scales_are_scaled() -> None:
    model = tiny_model("llama", LAYERS)
    plain = type(model)

    class Scaled(plain):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = found.logits * 0.125
            return found

    model.__class__ = Scaled
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits_of(executor_of(model), 1), expected, rtol=1e-4, atol=1e-5)


def test_biases_of_gate_and_up_stand_beside_their_rows() -> None:
    model = tiny_model("llama", LAYERS, mlp_bias=True)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits_of(executor_of(model), 1), expected, rtol=1e-3, atol=1e-4)
