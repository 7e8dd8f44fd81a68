"""What a fast block may differ by, and what a forecast counts of attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.llama.block import UnfitError
from layercoop_fast.llama.fast_blocks import TOLERANCE, check_block
from layercoop_fast.masked.forecast import ModelShape


def test_a_thousandth_is_too_much() -> None:
    block = nn.Linear(8, 8)
    call, convention = BlockCall((torch.zeros(1, 4, 8),), {}), Convention(0, None)
    check_block(block, block, call, convention, 4, 8, TOLERANCE)
    with pytest.raises(UnfitError, match="differs from the block"):
        check_block(lambda hidden: 1.001 * block(hidden), block, call, convention, 4, 8, TOLERANCE)


def test_attention_grows_with_the_square_of_the_window() -> None:
    shape = ModelShape(4, 64, 128, 0.5, 1000, 2)
    assert shape.block_flop(100) == 2 * shape.block_params * 100 + 2 * 64 * 100 * 100
