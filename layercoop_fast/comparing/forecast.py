"""An upper bound of what a comparison will cost, before it begins.

The masks that a search will ask for are not known; what masks like them cost is. So each method is assumed to spend its
whole budget on masks drawn at random. Those of a real search share more work, and `coop` rarely spends its budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.plan import count_evaluations
from layercoop_fast.masks.stratified import stratified_masks
from layercoop_fast.masks.types import Masks
from layercoop_fast.search import coop, evopress, exhaustive, official, random

# Passes of the full model of methods that measure no mask.
_OF_RULES = {"shortgpt": 1, "cka": 1, "zigzag": 1, "angular": 1, "taylor": 3, "flap": 1, "reverse": 0}
# Share of windows that offspring are measured on: all on a fifth, a quarter of them on half, an eighth on all.
_EVOLVED = 0.2 + 0.3 / 4 + 0.5 / 8
# Number of masks drawn to represent a larger budget.
_DRAWN = 500


@dataclass(frozen=True)
class Behind:
    """What follows every choice.

    Attributes:
        fitted_tokens: tokens of full passes to fit its repair and other compensations.
        models: pruned models that are measured: the choice by itself, and with each of them.
        judged_tokens: tokens that the judges run of each model.
    """

    fitted_tokens: int = 0
    models: int = 1
    judged_tokens: int = 0


@dataclass(frozen=True)
class Ahead:
    """An upper bound of the work ahead.

    Attributes:
        rows: number of rows (a method at a size) to be found.
        kept: number of rows known from an earlier comparison.
        passes: of the full model over the calibration text, by method, for all its sizes together.
        text_passes: passes to measure the choices on all other texts, items and prompts, with all that is fitted.
        repair_passes: passes to fit repairs and other compensations; 0 where none is fitted.
        seconds: time of all that, from a short pilot on single states; wider batches are mostly faster.
    """

    rows: int
    kept: int
    passes: dict[str, float]
    text_passes: float
    repair_passes: float
    seconds: float

    @property
    def total(self) -> float:
        """Passes of the full model over the calibration text, all together."""
        return sum(self.passes.values()) + self.text_passes + self.repair_passes


def ahead_of(
    games: Sequence[ModelGame],
    wanted: Sequence[tuple[int, str]],
    asked: int,
    budget: int | None,
    seed: int,
    behind: Behind,
) -> Ahead:
    """What finding the rows of these sizes and methods takes, on a game and the same model on other texts.

    `asked` is how many there are with those that are kept; `behind` is what follows each of them.
    """
    game = games[0]
    n, units = game.n_players, game.masked.players.n_units
    passes: dict[str, float] = {}
    masks = 0.0
    # What the largest size measures the smaller ones of the same method need not.
    for method in dict.fromkeys(method for _, method in wanted):
        sizes = [size for size, name in wanted if name == method]
        together = method in ("official", "sleb", "finercut", "ppl")
        for size in [max(sizes)] if together else sizes:
            if method in _OF_RULES:
                spent, count = float(_OF_RULES[method]), 0.0
            else:
                drawn, count = _like(method, n, size, budget, seed)
                each = count_evaluations(game.masked.players.unit_masks(drawn)).plan / len(drawn)
                count *= _EVOLVED if method == "evopress" else 1.0
                spent = count * each / units
            passes[method] = passes.get(method, 0.0) + spent
            masks += count
    own = game.masked.windows.ids.numel()
    tokens = sum(one.masked.windows.ids.numel() for one in games[1:])
    tokens = tokens * behind.models + own * (behind.models - 1) + behind.judged_tokens * behind.models
    stays = sum(1 - size / n for size, _ in wanted)
    text_passes = tokens / own * stays
    repair_passes = behind.fitted_tokens / own * len(wanted)
    unit, head = game.masked.pilot() if wanted else (0.0, 0.0)
    heads = masks + tokens / own * len(wanted)
    total = sum(passes.values()) + text_passes + repair_passes
    return Ahead(
        len(wanted), asked - len(wanted), passes, text_passes, repair_passes, total * units * unit + heads * head
    )


def _like(method: str, n: int, size: int, budget: int | None, seed: int) -> tuple[Masks, float]:
    """Masks like those that a method asks for to remove `size` of `n` players, and how many it asks for at most.

    The masks may be fewer, but one at least.
    """
    if method == "official":
        count = official.DEFAULT_BUDGET if budget is None else budget
        return stratified_masks(n, min(count, official.DEFAULT_BUDGET), seed=seed), count
    if method in ("sleb", "finercut"):
        rounds = _rounds(n, size, seed)
        return rounds, len(rounds)
    if method == "ppl":
        return ~np.eye(n, dtype=np.bool_), n
    count = {
        "coop": coop.default_budget(n, size) if budget is None else budget,
        "evopress": evopress.DEFAULT_BUDGET if budget is None else budget,
        "random": random.DEFAULT_BUDGET if budget is None else budget,
        "exhaustive": comb(n, size) if comb(n, size) <= exhaustive.DEFAULT_BUDGET else 0,  # or it refuses
    }[method]
    count = min(count, comb(n, size) + n)
    rng = np.random.default_rng(seed)
    drawn = np.argsort(rng.random((min(max(count, 1), _DRAWN), n)), axis=1) >= size
    return drawn, count


def _rounds(n: int, size: int, seed: int) -> Masks:
    """The candidates of greedy removal in some order."""
    order = np.random.default_rng(seed).permutation(n)
    rounds = []
    for gone in range(size):
        left = order[gone:]
        candidates = np.ones((len(left), n), dtype=np.bool_)
        candidates[:, order[:gone]] = False
        candidates[np.arange(len(left)), left] = False
        rounds.append(candidates)
    return np.concatenate(rounds)
