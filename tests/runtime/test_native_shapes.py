"""Which models the native executor takes, and the reason it gives for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from torch import nn

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.llama.model import find_model
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.native import NativeExecutor, fits


def llama() -> Any:
    return tiny_model("llama", 2)


def with_adapter() -> Any:
    class Adapted(nn.Linear):
        pass

    model = llama()
    model.model.layers[1].self_attn.q_proj.__class__ = Adapted
    return model


def with_relu() -> Any:
    model = llama()
    model.model.layers[0].mlp.act_fn = nn.ReLU()
    return model


def with_scaled_residuals() -> Any:
    model = llama()
    whole = type(model.model.layers[0])

    class Scaled(whole):
        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            return 0.5 * super().forward(hidden_states, **kwargs)

    for block in model.model.layers:
        block.__class__ = Scaled
    return model


def with_a_further_parameter() -> Any:
    model = llama()
    model.model.layers[1].self_attn.sink = nn.Parameter(torch.zeros(3))
    return model


def with_layer_norm() -> Any:
    model = llama()
    norm = nn.LayerNorm(48, bias=False)
    model.model.layers[0].input_layernorm = norm
    return model


def with_shared_blocks() -> Any:
    model = llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    return model


def with_growing_rotary() -> Any:
    return tiny_model("llama", 2, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: FAMILIES["gpt2"](2), "no attention made of q_proj"),
        (lambda: FAMILIES["qwen2_moe"](2), "no gated MLP made of gate_proj"),
        (with_adapter, "its q_proj is a Adapted, not a plain Linear"),
        (with_relu, "gated neither by SiLU nor by GELU's tanh form"),
        (with_scaled_residuals, "its block 0 computes something else"),
        (with_a_further_parameter, "a further parameter, self_attn.sink"),
        (with_layer_norm, "its input_layernorm is no root-mean-square norm"),
        (with_shared_blocks, "its blocks share parameters"),
        (with_growing_rotary, "angles of its rotation depend on the length of the text"),
        (lambda: tiny_model("olmo2", 2), "its halves norm what they add, not what they read"),
        (lambda: tiny_model("granite", 2), "it multiplies what its halves add by 0.6"),
        (lambda: llama().to(torch.float16), "it is torch.float16 on cpu"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_reason(make: Callable[[], Any], reason: str) -> None:
    model = make()
    found = fits(model)
    assert found is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found)
    with pytest.raises(RequestError, match=f"the native executor cannot run this model: .*{reason}"):
        NativeExecutor(model, "fp32", np.full(2, 3, dtype=np.uint8), 1 << 20)


def test_a_model_that_fits_can_still_be_run_by_itself() -> None:
    model = tiny_model("gemma3", 2)
    ids = torch.arange(3, 23)[None]
    with torch.inference_mode():
        before = model(ids, use_cache=False).logits
        assert fits(model) is None
        assert torch.equal(model(ids, use_cache=False).logits, before)


def test_parts_of_gemma_are_found_as_its_config_states_them() -> None:
    weights, _ = find_model(Skeleton(tiny_model("gemma3", 6)))
    windows = [block.sliding_window for block in weights.blocks if block is not None]
    assert windows == [8, 8, 0, 8, 8, 0]
    assert len(weights.rotaries) == 2
    assert weights.embedding_scale == pytest.approx(48**0.5, rel=1e-6)
    assert weights.first.activation == "gelu_tanh"
    assert weights.first.after_mlp is not None


def test_bfloat16_models_and_blocks_left_out() -> None:
    model = tiny_model("qwen3", 3).to(torch.bfloat16)
    model.model.layers[1].to(device="meta")
    skeleton = SkeletonOfHeld(model)
    held = np.array([3, 0, 3], dtype=np.uint8)
    assert fits(skeleton, held) is None
    executor = NativeExecutor(skeleton, "bf16", held, 1 << 20)
    assert executor.run([Chunk(executor.sequence(None), [5, 6])]).isfinite().all()


class SkeletonOfHeld(Skeleton):
    """A skeleton that learnt how blocks are called before some were let go of."""

    def __init__(self, model: Any) -> None:
        whole = tiny_model("qwen3", 3).to(torch.bfloat16)
        super().__init__(whole)
        self.model, self.blocks = model.eval(), tuple(model.model.layers)
