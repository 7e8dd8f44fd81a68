"""The engine on a random llama, against the published way and skipping, and against its products alone.

published   every mask by a whole pass with the removed blocks' weights at zero, one mask after the other
skipping    every mask by a pass over its kept blocks, one mask after the other
ours        all masks by the plan, in the pool
floor       the plan's products alone: as many, of the same shapes, one after the other

The first two take too long to be run for all masks: some are, and the time is that of a block times the number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from chips import seconds, wall
from transformers import LlamaForCausalLM

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.masked.batch_width import MAX_ROWS, batches, power_of_two_up_to
from layercoop_fast.masked.plan import build_plan
from layercoop_fast.masked.pool_units import make_pool_units
from layercoop_fast.masked.queues import queue_of
from layercoop_fast.masked.units import GeneralUnits
from layercoop_fast.texts.calibration import Calibration

# Masks that the two slow ways are run for.
_FEW = 3


def bench(model: LlamaForCausalLM, windows: int, tokens: int, n_masks: int) -> dict[str, Any]:
    """Seconds of each way for `n_masks` published masks on windows × tokens."""
    device, config = model.device, model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (windows, tokens), generator=generator).to(device)
    game = ModelGame(Checkpoint(model, None, "random"), Calibration(ids, "random"))
    masks = stratified_masks(game.n_players, n_masks, seed=0)
    masks[0] = True
    if device.type == "cpu":  # --tiny: the GPU's executor, kernels in the interpreter
        pooled = make_pool_units(game.masked.windows, GeneralUnits(game.masked.windows), queue_of(device), halves=False)
        assert pooled is not None
        game.masked.units = pooled
    plan = build_plan(masks, game.masked.limits()[0])
    few = masks[np.linspace(0, len(masks) - 1, min(_FEW, len(masks))).astype(int)]
    game.view(apart=True, stored=False).evaluate(masks[: min(64, n_masks)])  # kernels are compiled, libraries chosen
    _skipping(model, ids, few[0])
    ours = wall(lambda: game.evaluate(masks))
    zeroed = wall(lambda: [_published(model, ids, mask) for mask in few]) / len(few) * plan.n_unique
    skipped = wall(lambda: [_skipping(model, ids, mask) for mask in few])
    skipping = skipped / max(int(few.sum()), 1) * plan.skip
    floor = _floor(model, plan, windows * tokens, game.masked.scorer.share)
    return {
        "windows": windows,
        "tokens": tokens,
        "masks": plan.n_unique,
        "blocks": game.masked.units.path,
        "head": game.masked.scorer.path,
        "evaluations": {"naive": plan.naive, "skip": plan.skip, "scheduled": plan.scheduled},
        "states": plan.peak_states,
        "seconds": {"ours": ours, "skipping": skipping, "published": zeroed, "floor": floor},
        "run": {"skipping": len(few), "published": len(few)},
        "share_of_floor": floor / ours,
    }


def _loss(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = [
            F.cross_entropy(row.float(), target, reduction="sum")
            for row, target in zip(logits, ids[:, 1:], strict=True)
        ]
    return float(torch.stack(losses).sum())


def _published(model: LlamaForCausalLM, ids: torch.Tensor, mask: np.ndarray) -> float:
    """A pass with removed blocks' parameters kept aside and zeroed, as the published code does it."""
    removed = [block for block, kept in zip(model.model.layers, mask, strict=True) if not kept]
    aside = [[parameter.detach().clone() for parameter in block.parameters()] for block in removed]
    with torch.no_grad():
        for block in removed:
            for parameter in block.parameters():
                parameter.zero_()
        loss = _loss(model, ids)
        for block, kept in zip(removed, aside, strict=True):
            for parameter, value in zip(block.parameters(), kept, strict=True):
                parameter.copy_(value)
    return loss


def _skipping(model: LlamaForCausalLM, ids: torch.Tensor, mask: np.ndarray) -> float:
    layers = model.model.layers
    count = model.config.num_hidden_layers
    model.model.layers = torch.nn.ModuleList(layer for layer, kept in zip(layers, mask, strict=True) if kept)
    model.config.num_hidden_layers = len(model.model.layers)
    try:
        return _loss(model, ids)
    finally:
        model.model.layers, model.config.num_hidden_layers = layers, count


def _floor(model: LlamaForCausalLM, plan: Any, rows: int, scored: float) -> float:
    """Seconds of the plan's products, by those of one block at each batch size and of one head."""
    width = power_of_two_up_to(MAX_ROWS // rows)
    counts: dict[int, int] = {}
    for step in plan.steps():
        for part in batches(len(step.src), width) if step.player >= 0 else []:
            size = part.stop - part.start
            counts[size] = counts.get(size, 0) + 1
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).detach()
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach()
    maps = [qkv, attention.o_proj.weight.detach(), gate_up, mlp.down_proj.weight.detach()]
    total = 0.0
    with torch.inference_mode():
        for size, count in counts.items():
            total += count * seconds(_products(maps, size * rows))
        head = model.lm_head.weight.detach()
        total += plan.n_unique * seconds(_products([head], max(1, round(rows * scored))))
    return total


def _products(maps: list[torch.Tensor], rows: int) -> Callable[[], object]:
    inputs = [torch.randn(rows, weight.shape[1], device=weight.device, dtype=weight.dtype) for weight in maps]
    return lambda: [F.linear(x, weight) for x, weight in zip(inputs, maps, strict=True)]
