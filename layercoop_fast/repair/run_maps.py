"""Maps that stand in for every run of removed units, from one pass over the full model.

For a unit i and a run of the next g units, the output map of unit i is refitted to the full model's stream behind the
run, on the full model's own stream before unit i: with u the map's input and x_k the stream before unit k,

    ΔW = argmin  Σ_t w_t |x_{i+1+g} − x_{i+1} − ΔW u_t|²  +  s · g(G) · |ΔW|²          (`repair/ridge.py`)

All runs of one unit share their sums of squares, so that one factorisation gives all their maps. The maps know nothing
of each other: where a mask has several gaps, each acts as if the stream before it were the full model's. A repair fits
its maps one behind the other for one mask (`repair/gap_by_gap.py`); these are for searches, which compare many masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.masks.types import Masks, Progress
from layercoop_fast.repair.patches import Patch, patch, present, write
from layercoop_fast.repair.sites import find_site
from layercoop_fast.repair.streams import FullStreams
from layercoop_fast.repair.texts import RepairTexts

STRENGTH = 0.3
"""Of the ridge. A map of a search is fitted once, at the strength that repairs most often end with."""


class Kept(NamedTuple):
    """A kept unit, and the number of removed units behind it that its map stands in for; 0: its own weights."""

    unit: int
    run: int


@dataclass(frozen=True, eq=False)
class RunMaps:
    """The maps of all runs up to a length.

    Attributes:
        patches: by `Kept`, the parameters of the unit's site.
        longest: number of units of the longest run that has a map.
        record: what they were fitted to, as JSON; a part of fingerprints.
        tokens: unit evaluations times tokens that the fit took.
    """

    patches: dict[Kept, Patch]
    longest: int
    record: dict[str, Any]
    tokens: int

    def kept(self, units: Masks) -> list[Kept]:
        """What a mask over units, bool [U], runs, from shallow to deep.

        A run that has no map (longer than `longest`, or behind a unit without a site) leaves the longest that has one,
        or the unit's own weights. So does one before the first kept unit.
        """
        kept = [int(unit) for unit in np.flatnonzero(units)]
        found = []
        for unit, behind in zip(kept, [*kept[1:], len(units)], strict=True):
            run = min(behind - unit - 1, self.longest)
            found.append(Kept(unit, run if Kept(unit, run) in self.patches else 0))
        return found

    @contextmanager
    def lent(self) -> Iterator[Callable[[Kept], None]]:
        """Within the `with` block a call of what it gives, with a `Kept`, puts these parameters into the model.

        They stay until the same unit is asked for with another run. Afterwards the model has its own parameters.
        """
        own: dict[int, Patch] = {}
        now: dict[int, int] = {}

        def select(kept: Kept) -> None:
            if now.get(kept.unit, 0) == kept.run:
                return
            if kept.unit not in own:
                own[kept.unit] = present(self.patches[kept].site)
            write(self.patches[kept] if kept.run else own[kept.unit])
            now[kept.unit] = kept.run

        try:
            yield select
        finally:
            for one in own.values():
                write(one)


def fit_run_maps(
    game: ModelGame,
    texts: RepairTexts,
    longest: int,
    *,
    strength: float = STRENGTH,
    progress: Progress | None = None,
) -> RunMaps:
    """Fit the maps of all runs of up to `longest` units; the model is unchanged afterwards.

    Args:
        game: the model and its players. Its own windows are not used.
        texts: what is fitted to, each text with the same weight.
        longest: number of units of the longest run, at least 1.
        strength: of the ridge, relative to the mean square of an input.
        progress: called with ("units fitted", done, total).

    Units without a site (`find_site`) have no maps. Raises `RequestError` where no unit has one, or where streams are
    not finite.
    """
    players = game.masked.players
    streams = [FullStreams(game, text.fit) for text in texts.texts]
    patches: dict[Kept, Patch] = {}
    refused = "nothing can be removed behind the only unit"
    for unit in range(players.n_units):
        runs = min(longest, players.n_units - 1 - unit)
        if runs:
            try:
                site = find_site(players, unit)
            except RequestError as error:
                refused = str(error)
            else:
                sums = site.equations(runs, torch.float32)
                for stream in streams:
                    for chunk in stream.tokens(unit, site, runs):
                        sums.add(*chunk)
                for run, change in enumerate(sums.change(strength).tensor_split(runs), 1):
                    patches[Kept(unit, run)] = patch(site, change)
            for stream in streams:
                stream.advance(unit)
        if progress is not None:
            progress("units fitted", unit + 1, players.n_units)
    if not patches:
        raise RequestError(f"no run of removed layers can be repaired: {refused}")
    digest = hashlib.sha256()
    for text in texts.texts:
        digest.update(text.fit.cpu().numpy().tobytes())
    record = {
        "texts": [text.spec for text in texts.texts],
        "tokens": texts.tokens,
        "digest": digest.hexdigest()[:16],
        "longest": longest,
        "strength": strength,
    }
    return RunMaps(patches, longest, record, sum(stream.evaluated for stream in streams))


def longest_run(model: MaskedModel, wanted: int) -> int:
    """Units of the longest run to fit maps of: `wanted`, or fewer where all maps would not fit the budget of memory.

    Raises `RequestError` where not even the maps of single units fit, or where no unit has a site.
    """
    players = model.players
    longest = max(1, min(wanted, players.n_units - 1))
    for unit in range(players.n_units):
        with suppress(RequestError):
            weight = find_site(players, unit).module.get_parameter("weight")
            size = weight.numel() * weight.element_size()
            break
    else:
        find_site(players, 0)  # raises, and says why
    most = model.memory_budget() // (players.n_units * size)
    if most < 1:
        raise RequestError(
            f"maps for single removed layers take {players.n_units * size:,} bytes, and the budget of memory is "
            f"{model.memory_budget():,}: give a larger one (memory=)"
        )
    return min(longest, int(most))
