"""Two peculiarities of RWKV: a norm of the embedding in its first block, and rescaling between its blocks.

The first block begins with a norm of the embedding (`pre_ln`) that no other block has. Every mask needs this norm, so
it must not disappear with the block: it counts as part of the embedding, and in a pruned checkpoint the new first block
holds it. For half precision, RWKV halves the residual stream every few blocks and divides weights to match; with
`rescale_every = 0` the same model runs on the weights as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from layercoop_fast.errors import RequestError


def only_in_first(blocks: Sequence[nn.Module]) -> list[str]:
    """Names of the children that the first of several blocks has and the others lack."""
    if len(blocks) < 2:
        return []
    others = {name for block in blocks[1:] for name, _ in block.named_children()}
    return [name for name, _ in blocks[0].named_children() if name not in others]


@contextmanager
def passed_through(module: nn.Module | None) -> Iterator[None]:
    """Within the `with` block the module returns its input."""
    if module is None:
        yield
        return
    module.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del module.forward


def find_embedding_norm(
    blocks: Sequence[nn.Module], run_first: Callable[[Tensor], Tensor], hidden: Tensor
) -> nn.Module | None:
    """The child of the first block that only prepares the embedding; None where there is none.

    It is a child `norm` that no other block has and for which, bit for bit,

        first block without it, on norm(x)  =  first block on x

    Args:
        blocks: of the model, in order.
        run_first: runs the first block, [B, T, H] → [B, T, H].
        hidden: [B, T, H], what the first block receives.
    """
    with torch.inference_mode():
        for name in only_in_first(blocks):
            child = blocks[0].get_submodule(name)
            try:
                entered = child(hidden)
                with passed_through(child):
                    alone = run_first(entered.clone())
            except (RuntimeError, TypeError, ValueError, AttributeError):
                continue  # the child takes more than the residual stream: it is not such a norm
            if torch.equal(alone, run_first(hidden.clone())) and not torch.equal(entered, hidden):
                return child
    return None


def stop_rescaling(model: nn.Module) -> None:
    """Switch off the halving of the residual stream, and multiply the weights back that were divided for it, in place.

    The divisors are powers of two, so the weights are again those that were stored, unless they had become subnormal.
    Raises `RequestError` where quantised weights were divided.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "rescale_every", 0) and hasattr(module, "layers_are_rescaled"):
            if module.layers_are_rescaled:
                if getattr(model, "hf_quantizer", None) is not None:
                    raise RequestError(
                        "this quantised model has been run with rescaled weights, which cannot be undone: open it again"
                    )
                module.training = True  # the mode in which this family multiplies its weights back
                module._rescale_layers()  # type: ignore[operator]
                module.training = False
            config.rescale_every = 0  # type: ignore[union-attr]
