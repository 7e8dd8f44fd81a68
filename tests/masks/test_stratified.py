from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from toy_games import Additive

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import all_masks, published_strata, stratified_masks
from layercoop_fast.masks.types import check_masks, n_players_of, play, require_finite


def test_strata_of_the_published_sizes() -> None:
    assert published_strata(32) == [30, 27, 24, 21, 18]
    assert published_strata(64) == [60, 56, 52, 48, 42, 38, 34]


@pytest.mark.parametrize(
    ("n_players", "strata"),
    [
        (30, [28, 25, 23, 20, 17]),  # 28.1, 25.3, 22.5 (half goes up), 19.7, 16.9
        (16, [15, 14, 12, 11, 9]),  # 13.5 and 10.5 go up
        (80, [75, 68, 60, 53, 45]),
        (4, [3, 2]),  # 3.75 would be all of them; 3.4 and 3 fall together
        (2, [1]),
    ],
)
def test_strata_of_other_sizes_are_scaled(n_players: int, strata: list[int]) -> None:
    assert published_strata(n_players) == strata


def test_every_stratum_gets_as_many_and_the_first_get_the_rest() -> None:
    kept = stratified_masks(32, 8003).sum(axis=1)
    sizes, starts, counts = np.unique(-kept, return_index=True, return_counts=True)
    assert (-sizes).tolist() == [30, 27, 24, 21, 18]
    assert counts.tolist() == [1601, 1601, 1601, 1600, 1600]
    assert (np.diff(kept) <= 0).all(), "masks come stratum by stratum"
    assert starts[0] == 0


def test_strata_in_the_callers_order() -> None:
    assert stratified_masks(5, 6, strata=[0, 5, 2]).sum(axis=1).tolist() == [0, 0, 5, 5, 2, 2]
    assert stratified_masks(5, 1, strata=[2, 4]).sum(axis=1).tolist() == [2], "fewer masks than strata"


def test_each_player_is_kept_equally_often_within_a_stratum() -> None:
    """Chi-square on the counts of 32 players; 31 degrees of freedom, exceeded once in 10,000 at 68.8."""
    per_stratum = 4000
    masks = stratified_masks(32, 5 * per_stratum, seed=7)
    for kept, stratum in zip(published_strata(32), masks.reshape(5, per_stratum, 32), strict=True):
        share = kept / 32
        variance = per_stratum * share * (1 - share)
        # Draws without replacement within a mask are correlated by -1/(n - 1): hence (n - 1)/n.
        chi_square = ((stratum.sum(axis=0) - per_stratum * share) ** 2).sum() / variance * 31 / 32
        assert chi_square < 68.8, (kept, chi_square)


def test_each_set_is_as_likely_within_a_stratum() -> None:
    """Chi-square on all 20 sets of 3 of 6; 19 degrees of freedom, exceeded once in 10,000 at 50.8."""
    n_masks = 40_000  # more than one block
    codes = stratified_masks(6, n_masks, seed=3, strata=[3]) @ (1 << np.arange(6))
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 20
    assert ((counts - n_masks / 20) ** 2 / (n_masks / 20)).sum() < 50.8


def test_a_seed_is_a_sample() -> None:
    masks = stratified_masks(32, 500, seed=1)
    assert masks.dtype == np.bool_
    np.testing.assert_array_equal(masks, stratified_masks(32, 500, seed=1))
    for other in (2, [1, 1]):
        assert (masks != stratified_masks(32, 500, seed=other)).any()


def test_all_masks_count_in_binary() -> None:
    masks = all_masks(5)
    assert masks.dtype == np.bool_
    np.testing.assert_array_equal(masks @ (1 << np.arange(5)), np.arange(32))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: published_strata(1), "at least 2 players"),
        (lambda: stratified_masks(32, 0), "n_masks must be at least 1"),
        (lambda: stratified_masks(4, 8, strata=[]), "at least one"),
        (lambda: stratified_masks(4, 8, strata=[3, 3]), "distinct"),
        (lambda: stratified_masks(4, 8, strata=[5]), "between 0 and 4"),
        (lambda: all_masks(21), "1 to 20"),
    ],
)
def test_bad_requests_say_what_would_be_right(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RequestError, match=words):
        call()


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([[True, False]], "not list"),
        (np.array([[1, 0]]), "dtype bool"),
        (np.array([[True, False]], dtype=object), "dtype bool"),
        (np.array([True, False, True]), r"not \[3\]"),
        (np.array([1, 0]), "dtype bool"),
        (np.ones((3, 4), dtype=bool), r"not \[3, 4\]"),
    ],
)
def test_what_is_no_mask_array_is_refused(masks: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_masks(masks, 2)


def test_a_single_mask_is_one_row() -> None:
    mask = np.array([True, False])
    assert check_masks(mask, 2).tolist() == [[True, False]]
    rows = mask[None]
    assert check_masks(rows, 2) is rows


def test_the_number_of_players_is_the_games_own_or_the_callers() -> None:
    game = Additive([1.0, 2.0])
    assert n_players_of(game) == n_players_of(game, 2) == 2
    assert n_players_of(lambda masks: masks.sum(axis=1), 3) == 3
    with pytest.raises(RequestError, match="give n_players"):
        n_players_of(lambda masks: masks.sum(axis=1))
    with pytest.raises(RequestError, match="has 2 players"):
        n_players_of(game, 3)
    with pytest.raises(RequestError, match="positive integer"):
        n_players_of(object(), 0)


def test_a_game_must_answer_one_worth_a_mask() -> None:
    with pytest.raises(RequestError, match="not one worth a mask"):
        play(lambda masks: masks.sum(), np.ones((3, 2), dtype=bool))
    with pytest.raises(RequestError, match="2 of 3 worths"):
        require_finite(np.array([np.nan, 1.0, -np.inf]))


def test_names_come_without_torch() -> None:
    code = (
        "import sys, layercoop_fast.masks.stratified, layercoop_fast.search.base, layercoop_fast.shapley.permutation, "
        "layercoop_fast.shapley.stratified; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
