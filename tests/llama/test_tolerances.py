"""What a fast block may differ by, and what a forecast counts of attention."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.llama.block import UnfitError
from layercoop_fast.llama.cpu_block import Workspace
from layercoop_fast.llama.fast_blocks import TOLERANCE, check_form, fast_block
from layercoop_fast.masked.forecast import ModelShape


def test_a_thousandth_is_too_much() -> None:
    skeleton = Skeleton(tiny_model("llama", n_layers=1))
    call = skeleton.context(torch.zeros(1, 4, dtype=torch.int64)).call(0)
    fast = fast_block(skeleton.blocks[0], call, skeleton.convention, Workspace())
    assert fast is not None
    check_form(fast, skeleton.blocks[0], call, skeleton.convention, TOLERANCE)
    skeleton.blocks[0].mlp.down_proj.register_forward_hook(lambda module, inputs, output: 1.001 * output)
    with pytest.raises(UnfitError, match="differs from the block"):
        check_form(fast, skeleton.blocks[0], call, skeleton.convention, TOLERANCE)


def test_attention_grows_with_the_square_of_the_window() -> None:
    shape = ModelShape(4, 64, 128, 0.5, 1000, 2)
    assert shape.block_flop(100) == 2 * shape.block_params * 100 + 2 * 64 * 100 * 100
