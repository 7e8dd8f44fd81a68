"""Finalists of a search, ranked by what they are worth repaired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from short_texts import short_texts
from tiny_models import save_tiny

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.pruning.prune import prune
from layercoop_fast.repair import gap_by_gap, strengths
from layercoop_fast.repair.fit import fit_repair, repaired_worth
from layercoop_fast.repair.texts import load_texts
from layercoop_fast.report.html.page import report_page
from layercoop_fast.search import coop, sleb
from layercoop_fast.search.finalists import best_measured, best_repaired

Run = Callable[..., tuple[int, str, str]]
SMALL = {"windows": 2, "tokens": 16}
TOKENS = 1024


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two short texts of different kinds."""
    return short_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(autouse=True)
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a repair helps a model of random weights is chance: take it as it comes."""
    monkeypatch.setattr(gap_by_gap, "_no_worse", lambda after, before: True)
    monkeypatch.setattr(strengths, "STRENGTHS", (0.3, 30.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("finalists") / "model", n_layers=6))


@pytest.fixture(scope="module")
def game(model: str, specs: list[str]) -> ModelGame:
    return ModelGame.from_pretrained(model, specs[0], **SMALL)


def two_go(mask: np.ndarray) -> bool:
    return int((~mask).sum()) == 2


def test_the_best_measured_are_the_games_own_best(game: ModelGame) -> None:
    played = game.view(apart=True, stored=False)
    choice = sleb.search(played, 2)
    masks = best_measured(played, choice.mask, two_go, 4)
    known = played.known_masks()
    known = known[(~known).sum(axis=1) == 2]
    assert np.array_equal(masks[0], choice.mask)
    best = np.sort(played(known))[::-1][:4]
    np.testing.assert_array_equal(played(masks), best)
    chosen = ~np.isin(np.arange(6), [0, 5])
    assert best_measured(played, chosen, lambda mask: False, 4).tolist() == [chosen.tolist()]


def test_the_finalist_that_is_best_repaired_is_taken(game: ModelGame, specs: list[str]) -> None:
    played = game.view(apart=True, stored=False)
    searched = coop.search(played, 2)
    choice, repaired = best_repaired(played, searched, 4, two_go, load_texts(played, specs, TOKENS))
    rows = choice.details["finalists"]
    assert 2 <= len(rows) <= 4
    assert np.array_equal(choice.mask, repaired.mask)
    assert rows[0]["removed"] == np.flatnonzero(~choice.mask).tolist()
    assert np.flatnonzero(~searched.mask).tolist() in [row["removed"] for row in rows]
    # Each by itself, as if it had been the only one.
    for row in rows:
        mask = ~np.isin(np.arange(6), row["removed"])
        alone = fit_repair(played, mask, specs, tokens=TOKENS)
        assert (row["repaired_worth"], row["repaired_nll"]) == repaired_worth(played, alone)
        assert row["kept"] == alone.kept
        assert row["worth"] == played(mask[None])[0]
    worths = [row["repaired_worth"] for row in rows]
    assert worths == sorted(worths, reverse=True)


def test_another_than_the_searched_one_may_win(game: ModelGame, specs: list[str]) -> None:
    """A search whose answer is the worst mask that it measured."""
    played = game.view(apart=True, stored=False)
    searched = sleb.search(played, 2)
    known = played.known_masks()
    known = known[(~known).sum(axis=1) == 2]
    worst = type(searched)(known[played(known).argmin()], "sleb", None, 11)
    choice, repaired = best_repaired(played, worst, 2, two_go, load_texts(played, specs, TOKENS))
    assert np.array_equal(choice.mask, searched.mask)
    assert np.array_equal(repaired.mask, searched.mask)
    assert len(choice.details["finalists"]) == 2


def test_one_finalist_is_the_choice_itself(game: ModelGame, specs: list[str]) -> None:
    played = game.view(apart=True, stored=False)
    searched = sleb.search(played, 2)
    choice, repaired = best_repaired(played, searched, 1, two_go, load_texts(played, specs, TOKENS))
    assert choice is searched
    assert np.array_equal(repaired.mask, searched.mask)


def test_prune_says_which_were_compared(model: str, specs: list[str], run: Run, tmp_path: Path) -> None:
    quick = {"measure_cost": False, "samples": 0, "repair_tokens": TOKENS, "repair_text": specs}
    options = {"remove": 2, "calibration": specs[0], "method": "sleb", **quick, **SMALL}
    done = prune(model, tmp_path / "out", finalists=3, **options)
    rows = done.record["details"]["finalists"]
    assert done.record["removed"] == rows[0]["removed"]
    assert "--finalists 3" in done.record["command"]
    assert "worth repaired" in report_page(done.record)
    status, _, error = run("prune", model, "--remove", 2, "--out", tmp_path / "x", "--finalists", 3, "--no-repair")
    assert (status, "ranks 3 masks by their worth after a repair" in error) == (2, True)
    with pytest.raises(RequestError, match="finalists= must be at least 1 mask, not 0"):
        prune(model, tmp_path / "y", finalists=0, **options)
