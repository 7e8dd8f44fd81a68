"""What was found in a model and what can be done with it, for `layercoop-fast doctor`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.engine.quantised import is_quantised, method_of, parameters_of
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.errors import RequestError
from layercoop_fast.export.config import exportable
from layercoop_fast.inputs.options import TOKENS, WINDOWS
from layercoop_fast.llama.fast_blocks import why_not
from layercoop_fast.llama.fused_head import fused_head
from layercoop_fast.masked.forward import free_memory
from layercoop_fast.masked.pool_units import PoolUnits, pool_block
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.units import FastUnits
from layercoop_fast.masked.windows import Windows
from layercoop_fast.report.gpu_checks import check_gpu


def examine(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    windows: int = WINDOWS,
    tokens: int = TOKENS,
    blocks: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Open a checkpoint and report what was found: blocks, their arguments and results, the head, and what fits.

    `exact` is whether embedding, blocks and head, run one after another, give the model's own logits bit for bit.
    `exports` counts the masks that remove one layer and have a plain checkpoint, with the reason why others have none.
    `gpu` is what `check_gpu` found on the model's GPU, None where it is on the CPU.
    `sublayers` is the reason why attention and MLP cannot be separate players, None where they can.

    Raises `RequestError` as `open_checkpoint` and `Skeleton` do.
    """
    checkpoint = open_checkpoint(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    skeleton = Skeleton(checkpoint.model, blocks)
    tokens = min(tokens, skeleton.max_tokens or tokens)
    ids = (torch.arange(windows * tokens, device=skeleton.device) % skeleton.vocab_size).view(windows, tokens)
    context = skeleton.context(ids[:1])
    with torch.inference_mode():
        hidden = context.embedding
        for layer in range(skeleton.n_layers):
            hidden = context.run(layer, hidden)
        exact = torch.equal(context.logits(hidden), checkpoint.model(input_ids=ids[:1], use_cache=False).logits)
    measured = Windows(skeleton, ids)
    state_bytes = measured.state_bytes
    head = checkpoint.model.get_output_embeddings()
    convention = skeleton.convention
    return {
        "model": name,
        "class": type(checkpoint.model).__name__,
        "model_type": checkpoint.model.config.model_type,
        "dtype": str(skeleton.dtype).removeprefix("torch."),
        "params": parameters_of(checkpoint.model.parameters()),
        "quantised": method_of(checkpoint.model.config) if is_quantised(checkpoint.model) else None,
        "blocks": {
            "path": skeleton.blocks_path,
            "count": skeleton.n_layers,
            "classes": sorted({type(block).__name__ for block in skeleton.blocks}),
            "hidden_at": convention.takes,
            "returns": "tensor" if convention.gives is None else f"tuple, hidden state at {convention.gives}",
            "receives": {str(layer): context.describe(layer) for layer in _telling_layers(context, skeleton.n_layers)},
        },
        "head": None if head is None else f"{type(head).__name__} {list(head.weight.shape)}",
        "tied": bool(head is not None and head.weight is checkpoint.model.get_input_embeddings().weight),
        "tokenizer": checkpoint.tokenizer is not None,
        "exact": exact,
        "exports": _exports(checkpoint.model.config, skeleton.n_layers),
        "sublayers": _why_no_sublayers(skeleton),
        "fast": _fast_path(measured),
        "gpu": check_gpu(skeleton.device, skeleton.dtype) if skeleton.device.type == "cuda" else None,
        "windows": windows,
        "tokens": tokens,
        "state_bytes": state_bytes,
        "states_in_free_memory": free_memory(skeleton.device) // state_bytes,
    }


def _exports(config: Any, n_layers: int) -> dict[str, Any]:
    refusals = [exportable(config, mask) for mask in ~np.eye(n_layers, dtype=np.bool_)]
    return {
        "of": n_layers,
        "exportable": sum(refusal is None for refusal in refusals),
        "refusal": next((refusal for refusal in refusals if refusal is not None), None),
    }


def _why_no_sublayers(skeleton: Skeleton) -> str | None:
    try:
        Sublayers(skeleton)
    except RequestError as error:
        return str(error)
    return None


def _fast_path(windows: Windows) -> dict[str, Any]:
    """How blocks and head run where the model is, and why the first block that is not fast is not."""
    skeleton = windows.skeleton
    on_gpu = skeleton.device.type == "cuda"
    units = make_units(windows)
    fast = units.blocks if isinstance(units, (FastUnits, PoolUnits)) else [None] * skeleton.n_layers
    slow = next((layer for layer, block in enumerate(fast) if block is None), None)
    reason = None
    if slow is not None:
        call = skeleton.context(windows.ids[:1]).call(slow)
        why = pool_block if on_gpu else why_not
        reason = f"block {slow}: {why(skeleton.blocks[slow], call, skeleton.convention)}"
    head = fused_head(skeleton, windows.ids[:1], own_norm=on_gpu)
    return {"blocks": units.path, "why_not": reason, "head": "hf" if head is None else "fused"}


def _telling_layers(context: Any, n_layers: int) -> list[int]:
    """The first layer for each set of arguments: layers with the same arguments are listed once."""
    seen: dict[tuple[str, ...], int] = {}
    for layer in range(n_layers):
        seen.setdefault(tuple(context.describe(layer)), layer)
    return list(seen.values())
