"""What a block is handed in addition to its hidden states: rotary angles, and a mask of what each token sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.kernels.reference.attention import visible_rows
from layercoop_fast.llama.block import BlockParts, UnfitError


@dataclass(frozen=True)
class Rope:
    """Rotary angles of the rows of a state, and what its tokens see.

    Attributes:
        cos, sin: [P, D] of the positions of the rows. They are those of one window of T tokens, where all windows are
            alike (P = T), or of all windows one after another (P = W·T). Of the weights' dtype, or fp32.
        tokens: tokens T of a window.
        positions: int64 [P], where windows are trees: the position of each row (`kernels/attention.py`).
        sliding_window: tokens that a token sees, itself included, where these are fewer than a window's; else 0.
    """

    cos: Tensor
    sin: Tensor
    tokens: int
    positions: Tensor | None = None
    sliding_window: int = 0


def find_rope(call: BlockCall, convention: Convention, parts: BlockParts, positions: Tensor | None = None) -> Rope:
    """Find angles and mask among a call's arguments, and make sure that nothing else among them matters.

    `positions` (int64 [W, T]) are those of windows that are trees; without them windows are plain texts.
    """
    rope = read_rope(call, convention, parts.head_dim, parts.dtype, positions)
    masks = list(handed_masks(call, convention))
    all_before = None if positions is None else visible_rows(positions)[:, None]
    window = parts.sliding_window if parts.sliding_window < rope.tokens else 0
    # Without a mask it is taken to see all before it, whatever its config says: running it shows whether it does.
    if window and not all(is_mask(mask, all_before) for _, mask in masks):
        device = masks[0][1].device
        seen = causal_mask(rope.tokens, window, device)
        if positions is not None:
            seen = visible_rows(positions, window)[:, None]
        all_before, rope = seen, replace(rope, sliding_window=window)
    for where, mask in masks:
        if not is_mask(mask, all_before):
            raise UnfitError(f"{where} is neither a causal mask nor that of its sliding window")
    return rope


def read_rope(
    call: BlockCall, convention: Convention, width: int, dtype: torch.dtype, positions: Tensor | None = None
) -> Rope:
    """Read the angles [P, width] of heads of `width` from a call whose other arguments are known not to matter.

    `positions` int64 [W, T] are as in `find_rope`. Raises `UnfitError` where there are no such angles.
    """
    ropes = [
        value
        for where, value in call.arguments()
        if where != convention.takes
        and isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(item, Tensor) for item in value)
    ]
    if len(ropes) != 1:
        raise UnfitError("it is not handed one pair of cosines and sines")
    cos, sin = ropes[0]
    if cos.dim() != 3 or cos.shape != sin.shape or cos.shape[2] != width:
        raise UnfitError(f"its cosines and sines are not [windows, tokens, {width}]")
    if cos.dtype != sin.dtype or cos.dtype not in (dtype, torch.float32):
        raise UnfitError("its cosines and sines are neither of its weights' dtype nor fp32")
    tokens = cos.shape[1]
    if positions is not None:
        windows = len(positions)
        if cos.shape[0] < windows or tokens != positions.shape[1]:
            raise UnfitError("its cosines and sines are not one for each row")
        cos, sin = (item[:windows].reshape(-1, width).contiguous() for item in (cos, sin))
        return Rope(cos, sin, tokens, positions.reshape(-1).contiguous())
    if not (torch.equal(cos, cos[:1].expand_as(cos)) and torch.equal(sin, sin[:1].expand_as(sin))):
        raise UnfitError("its windows are not at the same positions")
    return Rope(cos[0].contiguous(), sin[0].contiguous(), tokens)


def handed_masks(call: BlockCall, convention: Convention) -> Iterator[tuple[str | int, Tensor]]:
    """Tensors [..., T, T] of a call that may be masks, and where they are: all but indices and the hidden state."""
    for where, value in call.arguments():
        matters = isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.bool)
        if where != convention.takes and matters:
            yield where, value


def causal_mask(tokens: int, sliding_window: int = 0, device: torch.device | None = None) -> Tensor:
    """What each token of a text sees, bool [T, T]: itself and all before it, or of these the last `sliding_window`."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return seen.triu(1 - sliding_window) if sliding_window else seen


def is_mask(mask: Tensor, seen: Tensor | None = None) -> bool:
    """Whether a mask [..., T, T] lets every token see what is True in `seen`, and adds nothing to those scores.

    `seen` is bool [T, T], or [W, 1, T, T] for each of the mask's windows; by default a token sees itself and all before
    it. What it keeps a token from seeing is all the rest.
    """
    if mask.dim() < 2 or mask.shape[-1] != mask.shape[-2]:
        return False
    if seen is None:
        seen = causal_mask(mask.shape[-1], device=mask.device)
    elif mask.shape[-2:] != seen.shape[-2:] or (seen.dim() == 4 and (mask.dim() != 4 or len(mask) != len(seen))):
        return False
    seen = seen.expand_as(mask)
    if mask.dtype == torch.bool:
        return torch.equal(mask, seen)
    return bool(torch.where(seen, mask == 0, mask <= torch.finfo(torch.float16).min).all())
