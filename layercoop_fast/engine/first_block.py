"""What a family does to the embedding inside its first block, or to the stream between its blocks, set apart from them.

RWKV has both. Its first block begins with a norm of the embedding (`pre_ln`) that no other block has: a block that may
be left out must not hold what every mask needs, so the norm counts as part of the embedding, and in a pruned checkpoint
the new first block holds it. And for half precision its loop halves the stream every few blocks, with weights divided
by as much: with `rescale_every = 0` the same model runs on the weights as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from layercoop_fast.errors import RequestError


def only_in_first(blocks: Sequence[nn.Module]) -> list[str]:
    """Names of the children that the first of several blocks has and no other."""
    if len(blocks) < 2:
        return []
    others = {name for block in blocks[1:] for name, _ in block.named_children()}
    return [name for name, _ in blocks[0].named_children() if name not in others]


@contextmanager
def standing_aside(module: nn.Module | None) -> Iterator[None]:
    """Within the block the module hands on what it gets."""
    if module is None:
        yield
        return
    module.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del module.forward


def find_entry(blocks: Sequence[nn.Module], run_first: Callable[[Tensor], Tensor], hidden: Tensor) -> nn.Module | None:
    """The child of the first block that only prepares the embedding; None where there is none.

    It is one that no other block has and for which, bit for bit,

        first block without it, on entry(x)  =  first block on x

    `run_first` runs the first block on [B, T, H]; `hidden` is what it receives.
    """
    with torch.inference_mode():
        for name in only_in_first(blocks):
            child = blocks[0].get_submodule(name)
            try:
                entered = child(hidden)
                with standing_aside(child):
                    alone = run_first(entered.clone())
            except (RuntimeError, TypeError, ValueError, AttributeError):
                continue  # it takes more than the stream: no such norm
            if torch.equal(alone, run_first(hidden.clone())) and not torch.equal(entered, hidden):
                return child
    return None


def stop_rescaling(model: nn.Module) -> None:
    """Switch off the halving of the stream every few blocks and put weights back that were divided for it, in place.

    The divisors are powers of two, so what comes back is what was stored (unless it had become subnormal). Raises
    `RequestError` where they went into quantised weights.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "rescale_every", 0) and hasattr(module, "layers_are_rescaled"):
            if module.layers_are_rescaled:
                if getattr(model, "hf_quantizer", None) is not None:
                    raise RequestError(
                        "this quantised model has been run with rescaled weights, which cannot be undone: open it anew"
                    )
                module.training = True  # the mode in which this family multiplies its weights back
                module._rescale_layers()  # type: ignore[operator]
                module.training = False
            config.rescale_every = 0  # type: ignore[union-attr]
