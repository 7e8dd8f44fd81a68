"""Races: what falls behind on the first windows, or breaks there, is measured no further."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from layercoop_fast.game.utility import UTILITIES
from layercoop_fast.search.ledger import Ledger


class Windowed:
    """A game of 10 windows in which each removed player costs its weight on every window, but for some noise."""

    n_players = 4
    has_windows = True
    utility = UTILITIES["nll"]
    windows = SimpleNamespace(n_windows=10)
    ends: list[int]

    def __init__(self, weights: list[float]) -> None:
        self.weights = np.array(weights)
        self.in_full: set[bytes] = set()

    def staged(self, ends: list[int]) -> Windowed:
        self.ends = ends
        return self

    def window_scores(self, masks: np.ndarray, end: int) -> SimpleNamespace:
        if end == 10:
            self.in_full |= {mask.tobytes() for mask in masks}
        noise = [[0.01 * np.sin(7 * window + 3 * mask.argmin()) for window in range(end)] for mask in masks]
        lost = np.where(masks, 0.0, self.weights).sum(axis=1, keepdims=True)  # NaN only where that player is removed
        nll = 2 + lost + np.array(noise)
        return SimpleNamespace(nll=nll, kl=np.full_like(nll, np.nan))


def test_what_is_behind_or_no_number_goes_no_further() -> None:
    game = Windowed([0.1, 0.1, 1.0, np.nan])
    ledger, singles = Ledger(game, 4, 10), ~np.eye(4, dtype=np.bool_)
    rival = ledger.measure(singles[:1])[0]
    pair = np.array([[False, False, True, True]])
    ledger.measure(pair)  # what differences between masks spread like
    near, behind, broken = ledger.measure(singles[1:], rival)
    assert (near.whole, behind.whole, broken.whole) == (True, False, False)
    assert broken.loss == np.inf
    assert {singles[2].tobytes(), singles[3].tobytes()}.isdisjoint(game.in_full)
    removed, losses, noise = ledger.samples(1.0)
    assert np.isfinite(losses).all()
    assert noise[removed[:, 2]].min() > noise[removed[:, 0]].max()
