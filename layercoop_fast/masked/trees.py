"""Whether a model's blocks do in a tree of tokens what they do on a sequence alone."""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast.engine.skeleton import Context
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.reference.attention import visible_rows
from layercoop_fast.llama.block_inputs import is_mask
from layercoop_fast.masked.windows import Windows

# How far a block's results in a tree may be from those on a sequence alone: Euclidean norm of the difference over that
# of what the block adds. Both are the model's own arithmetic, in sums of another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


# Small next to what a block adds, so that rounding of the stream does not hide a difference in what was added.
_CHECK_SCALE = 0.125


def check_trees(windows: Windows) -> None:
    """Make sure that the model's blocks do in a tree what they do on a sequence alone.

    The mask that blocks receive for the longest branch alone must be causal and nothing else. For the longest branch
    with other rows in between, the embedding must be the same in the tree, and so must be, up to rounding
    (`TOLERANCE`), what every block makes of random input.

    Raises `RequestError` in one line where that is not so: recurrent blocks, sliding windows that are shorter than the
    branch, models that take no positions.
    """
    assert windows.positions is not None
    torn = windows.positions < torch.arange(windows.ids.shape[1], device=windows.ids.device)
    try:
        with torch.inference_mode():
            reason = _narrow(windows, *_branch(windows.positions)) or _difference(
                windows, *_branch(windows.positions.where(torn, 0))
            )
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        reason = f"it fails on positions and a mask for them ({' '.join(str(error).split())[:120]})"
    if reason is not None:
        raise RequestError(
            f"{type(windows.skeleton.model).__name__} cannot share contexts between options: {reason}; "
            "score every sequence whole instead (share_context=False)"
        )


def _branch(depths: Tensor) -> tuple[int, int]:
    """Window and row of the largest of `depths`, int64 [W, T]."""
    return divmod(int(depths.argmax()), depths.shape[1])


def _narrow(windows: Windows, window: int, row: int) -> str | None:
    """Which block is kept from seeing all of the branch that ends in a row; None where all see it."""
    alone, _ = _alone(windows, window, row)
    for layer in range(windows.skeleton.n_layers):
        for where, value in alone.call(layer).arguments():
            matters = isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.bool)
            if matters and value.dim() == 4 and not is_mask(value):
                return f"block {layer} sees less than all of {alone.ids.shape[1]} tokens ({where} is not a causal mask)"
    return None


def _alone(windows: Windows, window: int, row: int) -> tuple[Context, Tensor]:
    """The branch that ends in a row of a window as a batch of its own, and its rows in the window."""
    assert windows.positions is not None
    rows = visible_rows(windows.positions[window : window + 1, : row + 1])[0, row].nonzero()[:, 0]
    return windows.skeleton.context(windows.ids[window, rows][None]), rows


def _difference(windows: Windows, window: int, row: int) -> str | None:
    """Where the branch that ends in a row differs from the same sequence alone; None where it does not."""
    alone, rows = _alone(windows, window, row)
    packed = windows.part(window, window + 1)
    skeleton = windows.skeleton
    if not torch.equal(alone.embedding, packed.embedding[:, rows]):
        return "it does not place tokens by the positions it is given"
    random = torch.randn(packed.embedding.shape, generator=torch.Generator().manual_seed(0)).mul_(_CHECK_SCALE)
    hidden = random.to(packed.embedding)
    for layer in range(skeleton.n_layers):
        expected = alone.run(layer, hidden[:, rows].clone()).double()
        found = packed.run(layer, hidden.clone())[:, rows].double()
        added = (expected - hidden[:, rows].double()).norm()
        difference = float((found - expected).norm() / added)
        if not difference <= TOLERANCE[skeleton.dtype]:
            return f"block {layer} gives other numbers there than on the sequence alone (by {difference:.0e} of them)"
    return None
