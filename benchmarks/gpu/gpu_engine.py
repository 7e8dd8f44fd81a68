"""The engine on a random llama, against the published way and skipping, and against its products alone.

published   every mask by a whole pass with the removed blocks' weights at zero, one mask after the other
skipping    every mask by a pass over its kept blocks, one mask after the other
ours        all masks by the plan, in the pool
floor       the plan's products alone: as many, of the same shapes, one after the other

The first two take too long to be run for all masks: some are, and the time is that of a block times the number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from chips import Bench, wall
from gpu_models import random_llama
from parts import Rows
from transformers import LlamaForCausalLM

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.kernels.gpu.frame import interpreted
from layercoop_fast.masked.batch_width import MAX_ROWS, batches, power_of_two_up_to
from layercoop_fast.masked.plan import Plan, build_plan
from layercoop_fast.masked.pool_units import make_pool_units
from layercoop_fast.masked.queues import queue_of
from layercoop_fast.masked.units import GeneralUnits
from layercoop_fast.texts.calibration import Calibration

# Masks that the two slow ways are run for.
_FEW = 3
# Ours and the products by turns, so often; the products in loops of about so many seconds.
_TURNS, _LOOP = 2, 3.0


def rows(bench: Bench) -> Rows:
    """An 8B llama on short and on long windows."""
    shapes = [(2, 6, 6)] if bench.tiny else [(10, 128, 1000), (8, 2048, 40)]
    yield from of_size(bench, "tiny" if bench.tiny else "8b", shapes)


def of_size(bench: Bench, size: str, shapes: list[tuple[int, int, int]]) -> Rows:
    """Of a size and shapes (windows, tokens, masks): ours and its floor by turns, then the two slow ways."""
    for windows, tokens, count in shapes:
        case = partial(_case, bench, size, windows, tokens, count)
        name = f"{size}, {windows} × {tokens}, {count} masks"
        yield f"{name}: ours", lambda case=case: _ours(*case())  # type: ignore[misc]
        for way, run in (("skipping", _skipping), ("published", _published)):
            yield f"{name}: {way}", lambda case=case, run=run: _slow(*case(), run)  # type: ignore[misc]


@cache
def _model(bench: Bench, size: str) -> LlamaForCausalLM:
    return random_llama(size, bench.device, bench.dtype)


@cache
def _case(
    bench: Bench, size: str, windows: int, tokens: int, count: int
) -> tuple[LlamaForCausalLM, torch.Tensor, ModelGame, np.ndarray]:
    model = _model(bench, size)
    ids = random_ids(model, windows, tokens)
    game = game_of(model, ids)
    masks = stratified_masks(game.n_players, count, seed=0)
    masks[0] = True
    return model, ids, game, masks


def random_ids(model: LlamaForCausalLM, windows: int, tokens: int) -> torch.Tensor:
    """Windows of tokens drawn at random: int64 [W, T], where the model is."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (windows, tokens), generator=generator).to(model.device)


def game_of(model: LlamaForCausalLM, ids: torch.Tensor, block_path: str = "auto") -> ModelGame:
    """The game of a model's layers on windows; on the CPU with a GPU's executor, for --tiny, unless by "hf"."""
    game = ModelGame(Checkpoint(model, None, "random"), Calibration(ids, "random"), block_path=block_path)
    if block_path != "hf" and model.device.type == "cpu" and interpreted():
        queue = queue_of(model.device)
        pooled = make_pool_units(game.masked.windows, GeneralUnits(game.masked.windows), queue, halves=False)
        assert pooled is not None
        game.masked.units = pooled
    return game


def _ours(model: LlamaForCausalLM, ids: torch.Tensor, game: ModelGame, masks: np.ndarray) -> dict[str, Any]:
    """Seconds of all masks and of their plan's products, by turns, so that both meet the same clocks."""
    plan = build_plan(masks, game.masked.limits()[0])
    floor = _Floor(model, plan, ids.numel(), game.masked.scorer.share)
    measure: Callable[[], object] = lambda: game.view(apart=True, stored=False).evaluate(masks)  # noqa: E731
    measure()  # kernels are compiled, libraries chosen, graphs captured
    turns = [(wall(measure), floor.seconds()) for _ in range(_TURNS)]
    ours, least = (min(times) for times in zip(*turns, strict=True))
    return {
        "seconds": ours,
        "of products alone": least,
        "products ÷ ours": least / ours,
        "masks": plan.n_unique,
        "evaluations": plan.scheduled,
        "÷ skipping's": plan.scheduled / plan.skip,
        "blocks": game.masked.units.path,
        "head": game.masked.scorer.path,
        "states": plan.peak_states,
    }


def _slow(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    game: ModelGame,
    masks: np.ndarray,
    run: Callable[[LlamaForCausalLM, torch.Tensor, np.ndarray], float],
) -> dict[str, Any]:
    """Some of the masks by a slow way: the time of all is that of a block times the number of them."""
    plan = build_plan(masks, game.masked.limits()[0])
    few = masks[np.linspace(0, len(masks) - 1, min(_FEW, len(masks))).astype(int)]
    run(model, ids, few[0])
    taken = wall(lambda: [run(model, ids, mask) for mask in few])
    share = plan.skip / max(int(few.sum()), 1) if run is _skipping else plan.n_unique / len(few)
    return {"seconds": taken * share, "masks": plan.n_unique, "masks run": len(few)}


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


class _Floor:
    """The products of a plan: as many, of the same shapes, or a share of all that takes some seconds."""

    def __init__(self, model: LlamaForCausalLM, plan: Plan, rows: int, scored: float) -> None:
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
        head = model.lm_head.weight.detach()
        self._kinds = [(_products(maps, size * rows), count) for size, count in counts.items()]
        self._kinds.append((_products([head], max(1, round(rows * scored))), plan.n_unique))

    def seconds(self) -> float:
        """Of all, by a share of each kind in one loop of about `_LOOP` seconds at least, or by all."""
        with torch.inference_mode():
            once = wall(lambda: [work() for work, _ in self._kinds])
            total = sum(count for _, count in self._kinds)
            share = min(1.0, _LOOP / max(once * total / len(self._kinds), 1e-9))
            some = [(work, max(1, round(share * count)), count) for work, count in self._kinds]
            taken = [wall(lambda w=work, n=n: [w() for _ in range(n)]) / n * count for work, n, count in some]  # type: ignore[misc]
        return sum(taken)


def _products(maps: list[torch.Tensor], rows: int) -> Callable[[], object]:
    inputs = [torch.randn(rows, weight.shape[1], device=weight.device, dtype=weight.dtype) for weight in maps]
    return lambda: [F.linear(x, weight) for x, weight in zip(inputs, maps, strict=True)]
