"""The best masks that a search has measured, and which of them is best after its repair.

A repair gains more than most differences between the best masks of a search, and not equally much for each: contiguous
removed layers are replaced by one linear map, separate ones by several. So the finalists can be ranked by their worth
after the repair, on the game's own windows, which no repair is fitted to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masks.types import Masks, Progress
from layercoop_fast.repair.fit import Repaired, fit_repair, repaired_worth
from layercoop_fast.repair.run_maps import RunMaps
from layercoop_fast.repair.texts import RepairTexts
from layercoop_fast.search.base import Choice, finite_or_none


def best_measured(game: ModelGame, chosen: Masks, wanted: Callable[[Masks], bool], count: int) -> Masks:
    """The chosen mask (bool [n]) and the best other masks that the game has measured, bool [F ≤ count, n].

    Masks that are not `wanted`, or whose worth is not finite, are left out.
    """
    known = game.known_masks()
    known = known[(known != chosen).any(axis=1)]
    known = known[[wanted(mask) for mask in known]]
    if len(known):
        worths = game(known)
        order = np.argsort(-np.where(np.isfinite(worths), worths, -np.inf), kind="stable")
        known = known[[row for row in order if np.isfinite(worths[row])][: count - 1]]
    return np.concatenate([chosen[None], known])


def check_finalists(count: int, *, repairs: bool) -> None:
    """Raise `RequestError` for a number of finalists below 1, and for several where nothing is repaired."""
    if count < 1:
        raise RequestError(f"finalists= must be at least 1 mask, not {count}")
    if count > 1 and not repairs:
        raise RequestError(
            f"finalists= ranks {count} masks by their worth after a repair: it needs repair=, and cannot be used with "
            "offload="
        )


def best_repaired(
    game: ModelGame,
    choice: Choice,
    count: int,
    wanted: Callable[[Masks], bool],
    texts: RepairTexts,
    *,
    compute: str = "full",
    required: bool = False,
    searched: ModelGame | None = None,
    maps: RunMaps | None = None,
    progress: Progress | None = None,
) -> tuple[Choice, Repaired]:
    """The finalist of highest worth after its repair, and that repair.

    Args:
        game: on whose windows finalists are ranked.
        choice: result of the search; it is one of the finalists, and stays the answer unless another is better.
        count: number of finalists, at least 1.
        wanted: whether a mask (bool [n]) may be chosen.
        texts, compute, required, maps: as of `fit_repair`.
        searched: the game that was searched, whose best measured masks are the finalists; by default `game`.
        progress: called with ("finalists repaired", done, total), and as by `fit_repair`.

    Where `count` is above 1, the choice's `details["finalists"]` lists for each finalist, best first: `removed`, its
    `worth` before and `repaired_worth` after the repair, `repaired_nll`, and whether the repair was `kept`.
    """
    masks = best_measured(searched or game, choice.mask, wanted, count) if count > 1 else choice.mask[None]
    found: list[tuple[float, Repaired]] = []
    rows: list[dict[str, Any]] = []
    for mask, worth in zip(masks, game(masks) if len(masks) > 1 else [np.nan], strict=True):
        repaired = fit_repair(game, mask, texts, compute=compute, maps=maps, required=required, progress=progress)
        if len(masks) == 1:
            return choice, repaired
        after, nll = repaired_worth(game, repaired)
        found.append((after if np.isfinite(after) else -np.inf, repaired))
        rows.append(
            {
                "removed": np.flatnonzero(~mask).tolist(),
                "worth": finite_or_none(float(worth)),
                "repaired_worth": finite_or_none(after),
                "repaired_nll": finite_or_none(nll),
                "kept": repaired.kept,
            }
        )
        if progress is not None:
            progress("finalists repaired", len(found), len(masks))
    order = sorted(range(len(found)), key=lambda row: -found[row][0])  # stable: of ties the search's own choice wins
    best = found[order[0]][1]
    details = {**choice.details, "finalists": [rows[row] for row in order]}
    return replace(choice, mask=best.mask, details=details), best
