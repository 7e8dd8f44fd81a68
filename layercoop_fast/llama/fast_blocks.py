"""Fast blocks, made from a model's own blocks where these fit, and checked against them by running both.

    workspace = Workspace()
    fast = fast_block(block, call, convention, workspace)    # None where it does not fit: why_not(...) says the reason

Whether a block is llama-shaped is seen from its parts and their attributes and from the arguments it is called with,
and then checked by running it: on random input the fast block must agree with the block itself, or it is not used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.llama.block import BlockParts, UnfitError, find_parts
from layercoop_fast.llama.block_inputs import Rope, find_rope
from layercoop_fast.llama.cpu_block import FastBlock, Workspace

# How far a fast block may be from the block itself: |fast - block| / |block - input|, Euclidean norms over the whole
# random input. In bf16 both round after every step, each a little differently.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
# Small compared with what a block adds, so that rounding of the sum in bf16 does not hide a difference in what was
# added.
_CHECK_SCALE = 0.125


class Form(Protocol):
    """Another way to compute a block: [W, T, H] → [W, T, H]."""

    parts: BlockParts
    rope: Rope

    def __call__(self, hidden: Tensor, /) -> Tensor:
        """Return a new tensor."""


AnyForm = TypeVar("AnyForm", bound=Form)


def fast_block(
    block: nn.Module,
    call: BlockCall,
    convention: Convention,
    workspace: Workspace,
    positions: Tensor | None = None,
    *,
    in_fp32: bool = True,
) -> FastBlock | None:
    """The fast form of a block as it is called for a batch of windows, or None where it has none.

    Args:
        block: a block of a model in evaluation mode.
        call: the arguments it gets; their hidden state is ignored. The fast block is for any number of windows of as
            many tokens.
        convention: where the hidden state goes in and comes out.
        workspace: shared among the blocks of a model.
        positions: of the rows of those windows, int64 [W, T], where they are trees (`kernels/attention.py`).
        in_fp32: compare a block of 16 bits in fp32 too, which takes memory for a copy of twice its size.
    """
    fast = _build(block, call, convention, workspace, positions, in_fp32=in_fp32)
    return fast if isinstance(fast, FastBlock) else None


def why_not(block: nn.Module, call: BlockCall, convention: Convention) -> str | None:
    """Why `fast_block` gives none, in one line; None where it does give one."""
    fast = _build(block, call, convention, Workspace())
    return None if isinstance(fast, FastBlock) else fast


def _build(
    block: nn.Module,
    call: BlockCall,
    convention: Convention,
    workspace: Workspace,
    positions: Tensor | None = None,
    *,
    in_fp32: bool = True,
) -> FastBlock | str:
    def make(block: nn.Module, call: BlockCall) -> FastBlock:
        parts = find_parts(block)
        return FastBlock(parts, find_rope(call, convention, parts, positions), workspace)

    try:
        return checked(make, block, call, convention, TOLERANCE, workspace.proven if in_fp32 else None)
    except UnfitError as reason:
        return str(reason)


def checked(
    make: Callable[[nn.Module, BlockCall], AnyForm],
    block: nn.Module,
    call: BlockCall,
    convention: Convention,
    tolerances: Mapping[torch.dtype, float],
    proven: set[Hashable] | None,
) -> AnyForm:
    """Make a form of a block; raises `UnfitError` unless both agree on random input.

    Rounding in 16 bits hides what is wrong with an attention that is nearly uniform. The first block of each kind is
    therefore compared in fp32 too: a copy of the block with a form of that copy. `proven` collects these kinds; with
    None nothing is compared in fp32.
    """
    form = make(block, call)
    check_form(form, block, call, convention, tolerances)
    if proven is not None and form.parts.dtype in (torch.bfloat16, torch.float16):
        numbers = tuple(value for value in vars(form.parts).values() if isinstance(value, (int, float, str)))
        kind = (type(block), numbers, form.rope.sliding_window)
        if kind not in proven:
            try:
                with torch.inference_mode(False), torch.no_grad():  # weights of the copy are ordinary parameters
                    wide, wide_call = copy.deepcopy(block).float(), call.to(torch.float32)
                check_form(make(wide, wide_call), wide, wide_call, convention, tolerances)
            except RuntimeError as error:  # no memory for the copy, or attention that takes 16 bits alone
                raise UnfitError(f"it could not be compared in fp32 ({str(error).splitlines()[0]})") from error
            proven.add(kind)
    return form


def check_form(
    form: Form, block: nn.Module, call: BlockCall, convention: Convention, tolerances: Mapping[torch.dtype, float]
) -> None:
    """Raise `UnfitError` unless a form and its block agree on random input [W, T, H] of the call's batch."""
    shape = (_windows(call, convention), form.rope.tokens, form.parts.hidden)
    like = next(block.parameters())
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(_CHECK_SCALE).to(like)
    with torch.inference_mode():
        whole = call.with_hidden(convention.takes, hidden.clone())
        expected = convention.unwrap(block(*whole.args, **whole.kwargs)).double()
        added = (expected - hidden.double()).norm()
        difference = float((form(hidden).double() - expected).norm() / added)
    if not difference <= tolerances[like.dtype]:
        raise UnfitError(
            f"on random input the fast block differs from the block by {difference:.1e} of what it adds "
            f"({tolerances[like.dtype]:.0e} allowed)"
        )


def _windows(call: BlockCall, convention: Convention) -> int:
    """The batch size that a call's arguments are made for."""
    found = 1
    for where, value in call.arguments():
        tensors = value if isinstance(value, (tuple, list)) else [value]
        if where != convention.takes:
            found = max([found, *(len(item) for item in tensors if isinstance(item, Tensor) and item.dim() > 1)])
    return found
