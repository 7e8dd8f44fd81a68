"""Races: what falls behind on the first windows, or breaks there, is measured no further."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from toy_games import Additive

from layercoop_fast.game.utility import UTILITIES
from layercoop_fast.search.measurements import Measurements


class Windowed:
    """A game of 10 windows in which each removed player costs its weight on every window, but for some noise."""

    n_players = 4
    utility = UTILITIES["nll"]
    ends: list[int]

    def __init__(self, weights: list[float], n_windows: int = 10, scale: np.ndarray | float = 1.0) -> None:
        self.weights = np.array(weights)
        self.n_windows = n_windows
        self.scale = np.broadcast_to(scale, n_windows)
        self.in_full: set[bytes] = set()
        self.asked: list[tuple[int, int]] = []

    def staged(self, ends: list[int]) -> Windowed:
        self.ends = ends
        return self

    def window_scores(self, masks: np.ndarray, end: int) -> SimpleNamespace:
        self.asked.append((len(masks), end))
        if end == self.n_windows:
            self.in_full |= {mask.tobytes() for mask in masks}
        noise = [[0.01 * np.sin(7 * window + 3 * mask.argmin()) for window in range(end)] for mask in masks]
        lost = np.where(masks, 0.0, self.weights).sum(axis=1, keepdims=True)  # NaN only where that player is removed
        nll = 2 + self.scale[:end] * (lost + np.array(noise))
        return SimpleNamespace(nll=nll, kl=np.full_like(nll, np.nan))


def test_what_is_behind_or_no_number_goes_no_further() -> None:
    game = Windowed([0.1, 0.1, 1.0, np.nan])
    measurements, singles = Measurements(game, 4, 10), ~np.eye(4, dtype=np.bool_)
    rival = measurements.measure(singles[:1])[0]
    pair = np.array([[False, False, True, True]])
    measurements.measure(pair)  # what differences between masks spread like
    near, behind, broken = measurements.measure(singles[1:], rival)
    assert (near.whole, behind.whole, broken.whole) == (True, False, False)
    assert broken.loss == np.inf
    assert {singles[2].tobytes(), singles[3].tobytes()}.isdisjoint(game.in_full)
    removed, losses, noise = measurements.samples(1.0)
    assert np.isfinite(losses).all()
    assert noise[removed[:, 2]].min() > noise[removed[:, 0]].max()


def test_a_field_races_itself_in_stages() -> None:
    """Without a rival the best of the field is one: each stage measures what is not behind it so far."""
    game = Windowed([0.09, 0.1, 0.105, 1.0])
    measurements, singles = Measurements(game, 4, 10), ~np.eye(4, dtype=np.bool_)
    entries = measurements.measure(singles, race=True)
    assert game.ends == [2, 5, 10]
    assert [len(entry.windows) for entry in entries] == [10, 10, 5, 2]
    assert [entry.whole for entry in entries] == [True, True, False, False]
    assert [measurements.knows(mask) for mask in singles] == [True] * 4
    assert [measurements.knows_whole(mask) for mask in singles] == [True, True, False, False]
    assert not measurements.knows_whole(np.array([False, False, True, True]))
    # Every stage was asked once, for those still in the race.
    assert [count for count, _ in game.asked] == [4, 1, 3, 1, 2, 1]
    assert [end for _, end in game.asked] == [2, 2, 5, 5, 10, 10]


def test_without_a_race_all_are_measured_whole() -> None:
    game = Windowed([0.1, 0.1, 0.13, 1.0])
    assert all(entry.whole for entry in Measurements(game, 4, 10).measure(~np.eye(4, dtype=np.bool_)))
    few = Windowed([0.1, 0.1, 0.13, 1.0], n_windows=5)
    assert all(entry.whole for entry in Measurements(few, 4, 10).measure(~np.eye(4, dtype=np.bool_), race=True))
    assert few.ends == [5]


def test_what_few_windows_say_of_all() -> None:
    """Windows that lose half as much as the others, for every mask: a loss on them alone counts double."""
    game = Windowed([0.1, 0.12, 0.11, 1.0], scale=np.where(np.arange(10) < 5, 1.0, 2.0))
    measurements = Measurements(game, 4, 10)
    *whole, behind = measurements.measure(~np.eye(4, dtype=np.bool_), race=True)
    assert not behind.whole
    assert behind.loss == pytest.approx(1.0, abs=0.02)
    assert measurements.expected(behind) == pytest.approx(1.5, abs=0.1)
    for entry in whole:
        assert not entry.whole or measurements.expected(entry) == entry.loss
    removed, losses, noise = measurements.samples(trust=2.0)
    assert losses[removed[:, 3]] == pytest.approx(measurements.expected(behind))
    # On a fifth of the windows a loss holds at least five times the variance.
    assert noise[removed[:, 3]].item() >= 5 * noise.min()


def test_each_mask_is_paid_for_once() -> None:
    game = Windowed([0.1, 0.1, 0.13, 1.0])
    measurements, singles = Measurements(game, 4, 3), ~np.eye(4, dtype=np.bool_)
    first = measurements.measure(np.concatenate([singles[:2], singles[:2]]))
    assert len(first) == 4
    assert measurements.left == 1
    calls = len(game.asked)
    assert measurements.measure(singles[:2]) == first[:2]
    assert len(game.asked) == calls
    assert len(measurements.measure(singles[2:])) == 1
    assert (measurements.left, measurements.knows(singles[3])) == (0, False)


def test_a_game_without_windows_has_no_races() -> None:
    game = Additive([0.5, 0.1, 0.3, 0.6])
    measurements = Measurements(game, 4, 10)
    entries = measurements.measure(~np.eye(4, dtype=np.bool_), race=True)
    worths = np.array([1.0, 1.4, 1.2, 0.9])
    assert [entry.loss for entry in entries] == pytest.approx(np.log(1.5) - np.log(worths))
    assert measurements.of_size(1)[0].mask.tolist() == [True, False, True, True]
