"""The streams of transformers' own model, by hooks: what fits to it are compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def blocks_of(model: Any) -> nn.ModuleList:
    """The blocks of a model."""
    found: nn.ModuleList = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    return found


@torch.no_grad()
def full_run(model: Any, ids: Tensor, unit: int, name: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """The stream before every block and behind the last, and what a module of one block is handed and returns.

    All are float64 [tokens, H], with the last dimension of the module's own in the case of what it is handed.
    """
    states: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    blocks = blocks_of(model)
    handles = [block.register_forward_pre_hook(lambda _, args: states.append(args[0].clone())) for block in blocks]
    handles.append(
        blocks[-1].register_forward_hook(
            lambda _, __, out: states.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    )
    module = blocks[unit].get_submodule(name)
    handles.append(module.register_forward_hook(lambda _, args, out: seen.append((args[0].clone(), out.clone()))))
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    handed, returned = (part.double().reshape(ids.numel(), -1) for part in seen[0])
    return [state.double().reshape(ids.numel(), -1) for state in states], handed, returned
