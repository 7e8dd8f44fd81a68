"""What fitting a repair will take, before it begins.

    seconds = forecast_repair(game, mask, texts)         # {"full": 130.2, "small": 58.9}

Counted are the streams of both models, the sums of products, the factorisations and the held-out windows of a usual
number of strengths; each at a rate that a short pilot measures on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

import numpy as np
import torch

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.forward import wait_for
from layercoop_fast.masks.types import Masks
from layercoop_fast.repair.gaps import find_gaps
from layercoop_fast.repair.neurons import find_gated
from layercoop_fast.repair.options import COMPUTES
from layercoop_fast.repair.sites import Site, find_site
from layercoop_fast.repair.texts import RepairTexts

# Strengths that a climb usually tries for a gap.
_TRIALS = 4
# Size of the pilot's matrices at most: rates do not change beyond it.
_PILOT = 1024


def forecast_repair(game: ModelGame, mask: Masks, texts: RepairTexts) -> dict[str, float]:
    """Seconds that a repair of a mask, bool [n], takes, for each of `COMPUTES`; nothing is fitted.

    A gap before which no map can be refitted costs nothing.
    """
    masked = game.masked
    units = masked.players.unit_masks(mask[None])[0]
    window = masked.windows.ids.numel()
    unit, head = (seconds / window for seconds in masked.pilot())
    device = masked.skeleton.device
    held = sum(text.choice.numel() for text in texts.texts)
    rates = cache(partial(_rates, device=device))  # gaps mostly have maps of one size
    found = dict.fromkeys(COMPUTES, 0.0)
    for gap in find_gaps(units):
        site = None
        with suppress(RequestError):
            site = find_site(masked.players, gap.unit)
        if not isinstance(site, Site):
            continue
        outputs, inputs = site.weight.shape
        behind = int(np.count_nonzero(units[gap.unit :]))
        trials = (1 + 2 * _TRIALS) * held * (behind * unit + head)
        product, solve = rates(min(inputs, _PILOT))
        for compute in COMPUTES:
            gated = find_gated(masked.players, site) if compute == "full" else None
            width = inputs if gated is None else inputs + outputs
            sums = 2 * texts.tokens * width * (width + outputs) / product
            others = inputs**3 / 3 + 2 * inputs**2 * outputs
            whole = others if gated is None else others + width**3 + 2 * width**2 * outputs
            solved = _TRIALS * (whole + len(texts.texts) * others) / solve
            found[compute] += sums + solved + trials + texts.tokens * unit * (1 if gated is None else 2)
    streams = texts.tokens * unit * (len(units) + np.count_nonzero(units))
    return {compute: seconds + float(streams) for compute, seconds in found.items() if seconds}


def _rates(size: int, device: torch.device) -> tuple[float, float]:
    """Operations a second of a float32 product and of a float64 factorisation with matrices of this size."""
    rows = torch.rand(4 * size, size, device=device)
    square = torch.eye(size, dtype=torch.float64, device=device) * size + 1
    product = _seconds(lambda: rows.t() @ rows, device)
    solve = _seconds(lambda: torch.cholesky_solve(square, torch.linalg.cholesky(square)), device)
    return 8 * size**3 / product, (size**3 / 3 + 2 * size**3) / solve


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    wait_for(device)
    began = time.perf_counter()
    work()
    wait_for(device)
    return max(time.perf_counter() - began, 1e-9)
