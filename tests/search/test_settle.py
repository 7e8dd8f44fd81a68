"""Growing the text until the best mask is settled, each step against games made on as much text at once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_tokenizer

from layercoop_fast import ModelGame
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.game.bootstrap import probability_better
from layercoop_fast.masks.types import Masks
from layercoop_fast.search.base import Choice
from layercoop_fast.search.settle import settle
from layercoop_fast.texts.calibration import Calibration, read_text, window_starts

L, T, FIRST = 5, 16, 3
ONE_GOES = ~np.eye(L, dtype=np.bool_)


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return Skeleton(FAMILIES["llama"](n_layers=L))


@cache
def cut(skeleton: Skeleton, windows: int) -> Calibration:
    """As many windows of one text, spread evenly over it as `load_calibration` does it."""
    ids = torch.tensor(tiny_tokenizer()(read_text("builtin")[:1600])["input_ids"])
    return Calibration(torch.stack([ids[at : at + T] for at in window_starts(len(ids), T, windows)]), "a text")


def game_on(skeleton: Skeleton, windows: int) -> ModelGame:
    checkpoint = Checkpoint(skeleton.model, tiny_tokenizer(), "tiny")
    return ModelGame(checkpoint, cut(skeleton, windows), skeleton=skeleton, utility="nll")


@cache
def losses(skeleton: Skeleton, windows: int) -> Any:
    """What each single player costs on each window, from a game on so many."""
    game = game_on(skeleton, windows)
    scores = game.window_scores(np.concatenate([np.ones((1, L), np.bool_), ONE_GOES])).nll
    return scores[1:] - scores[0]


def settled(
    skeleton: Skeleton,
    level: float,
    most: int,
    wanted: Any = lambda mask: (~mask).sum() == 1,
    chosen: Masks = ONE_GOES[0],
) -> tuple[ModelGame, Choice, list[dict[str, Any]], str]:
    game = game_on(skeleton, FIRST)
    game(ONE_GOES)
    grown, choice = settle(
        game,
        Choice(chosen, "coop", None, L),
        level,
        most_windows=most,
        cut=lambda windows: cut(skeleton, windows),
        wanted=wanted,
    )
    found = choice.details["settled"]
    return grown, choice, found["steps"], found["stopped"]


def test_each_step_is_a_game_on_as_much_text(skeleton: Skeleton) -> None:
    """Whatever the search chose, here the worst of all: the best on all the text is the answer."""
    worst = int(np.argmax(losses(skeleton, FIRST).mean(axis=1)))
    grown, choice, steps, stopped = settled(skeleton, 1e-9, 9, chosen=ONE_GOES[worst])
    assert [step["windows"] for step in steps] == [3, 5, 9]
    assert stopped == "17 windows of each text would be more than 9"
    for step in steps:
        means = losses(skeleton, step["windows"]).mean(axis=1)
        first, second = np.argsort(means)[:2]
        assert (step["removed"], step["runner_up"]) == ([first], [second])
        assert step["loss"] == pytest.approx(means[first], abs=1e-5)
        assert step["runner_up_loss"] == pytest.approx(means[second], abs=1e-5)
        rows = losses(skeleton, step["windows"])[[first, second]]
        again = probability_better(*rows, rng=np.random.default_rng(7), resamples=20_000)
        assert step["runner_up_better"] == pytest.approx(again, abs=0.03)
    assert np.flatnonzero(~choice.mask).tolist() == steps[-1]["removed"]
    assert grown.masked.windows.n_windows == 9
    assert float(grown(choice.mask)[0]) == pytest.approx(-game_on(skeleton, 9).evaluate(choice.mask).nll[0], abs=1e-5)


def test_growing_ends_at_the_level_and_no_sooner(skeleton: Skeleton) -> None:
    chances = [step["runner_up_better"] for step in settled(skeleton, 1e-9, 9)[2]]
    assert 0 < chances[0] < 0.45  # or there would be nothing to tell apart
    at, just_below = (settled(skeleton, level, 9)[2:] for level in (chances[0], 0.98 * chances[0]))
    assert (len(at[0]), at[1]) == (1, "settled")
    assert len(just_below[0]) > 1


def test_the_most_windows_are_reached_and_not_exceeded(skeleton: Skeleton) -> None:
    for most, reached in ((3, 3), (4, 3), (5, 5), (8, 5), (9, 9)):
        steps = settled(skeleton, 1e-9, most)[2]
        assert steps[-1]["windows"] == reached, most


def test_only_what_is_wanted_may_win(skeleton: Skeleton) -> None:
    allowed = (ONE_GOES[1], ONE_GOES[4])
    _, choice, steps, _ = settled(
        skeleton, 1e-9, 5, lambda mask: any(np.array_equal(mask, one) for one in allowed), ONE_GOES[1]
    )
    assert choice.details["settled"]["finalists"] == 2
    means = losses(skeleton, 5).mean(axis=1)
    assert steps[-1]["removed"] == [1 if means[1] < means[4] else 4]
