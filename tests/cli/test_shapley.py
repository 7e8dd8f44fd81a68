"""`layercoop-fast shapley --worths FILE` as a user meets it: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_games import Redundant

from layercoop_fast.game.worths import Worths
from layercoop_fast.masks.stratified import stratified_masks
from layercoop_fast.search import valuation
from layercoop_fast.shapley.exact import exact_shapley

N = 9


class Interacting(Redundant):
    """Players 0 and 1 stand in for each other: losing both costs far more than the two losses."""

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        return super().__call__(masks) * np.exp(-1.5 * (~masks[:, 0] & ~masks[:, 1]))


GAME = Interacting(N, [4, 7])


def measured(path: Path, *, n: int = N, utility: str = "ppl_ratio", spoilt: int = 0) -> Path:
    """A worths.npz of four windows whose mean is the game, each with some noise of its own."""
    rng = np.random.default_rng(0)
    game = GAME if n == N else Redundant(n, [2])
    masks = stratified_masks(n, 400, seed=1, strata=range(n + 1))
    noise = 0.02 * rng.normal(size=(400, 4))
    window_nll = 3 - np.log(game(masks))[:, None] + noise
    nll = window_nll.mean(axis=1)
    worths = np.exp(3 - nll)
    worths[:spoilt] = np.nan
    tokens = np.full(4, 20, dtype=np.int64)
    Worths(masks, worths, nll, window_nll, tokens, {"utility": utility}).save(path)
    return path


@pytest.fixture(scope="module")
def worths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured(tmp_path_factory.mktemp("shapley") / "worths.npz")


@pytest.fixture
def shapley(run: Any) -> Any:
    """Call the command here: (exit status, standard output, standard error)."""
    return partial(run, "shapley")


def test_values_lie_in_their_intervals_and_are_those_of_the_game(shapley: Any, worths: Path) -> None:
    status, printed, errors = shapley("--worths", worths, "--json")
    assert (status, errors) == (0, "")
    found = json.loads(printed)
    truth = exact_shapley(lambda masks: np.log(GAME(masks)), N).values
    values, low, high = (np.array(found[name]) for name in ("values", "low", "high"))
    np.testing.assert_allclose(values, truth, atol=0.06)
    assert (low < values).all()
    assert (values < high).all()
    assert (high - low).max() < 0.5
    assert (found["method"], found["unit"], found["level"]) == ("exact", "log worth", 0.95)
    by_source = np.array([found["stderr_by_source"][name] for name in ("sampling", "ensemble", "text")])
    np.testing.assert_allclose(np.sqrt((by_source**2).sum(axis=0)), found["stderr"], rtol=1e-12)
    assert (by_source[0] == 0).all(), "nothing was sampled"
    assert (by_source[1:] > 0).all()
    assert found["order"] == np.argsort(values, kind="stable").tolist()
    assert set(found["order"][:2]) == {4, 7}
    assert [4, 7] in found["unsettled"], "both cost the same"
    assert [0, 4] not in found["unsettled"]
    assert found["fit"]["inside"]["r2"] > 0.95


def test_the_table_is_sorted_with_intervals_bars_and_what_is_open(shapley: Any, worths: Path) -> None:
    status, printed, errors = shapley("--worths", worths)
    assert (status, errors) == (0, "")
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    values = [float(row[1]) for row in rows]
    assert len(rows) == N
    assert values == sorted(values)
    for _, value, interval, _, bar in rows:
        low, high = map(float, interval.split(" to "))
        assert low < float(value) < high
        assert set(bar.strip()) <= {"█"}
    assert "7" in next(row[3] for row in rows if row[0].strip() == "4").split()
    assert len(rows[-1][4].strip()) > 3 * len(rows[0][4].strip())
    assert "order not settled at 95%:" in printed
    assert "masks held out (pairwise ridge" in printed
    assert "calibration text" in printed
    assert "extrapolates" not in printed, "masks of every size were measured"


def test_interactions_and_best_masks_go_with_the_values(shapley: Any, worths: Path, tmp_path: Path) -> None:
    out = tmp_path / "values.npz"
    status, printed, errors = shapley("--worths", worths, "--interactions", "--best-per-size", "--json", "--out", out)
    assert (status, errors) == (0, "")
    found = json.loads(printed)
    pairs = np.array(found["interactions"])
    np.testing.assert_array_equal(pairs, pairs.T)
    assert np.unravel_index(pairs.argmin(), pairs.shape) == (0, 1), "each is worth less where the other is"
    assert pairs.min() < -0.7
    best = found["best_per_size"]
    assert [row["kept"] for row in best] == list(range(N + 1))
    assert best[N - 2]["removed"] == [4, 7]
    assert all(len(row["removed"]) == N - row["kept"] for row in best)
    assert best[N - 2]["worth"] == pytest.approx(np.exp(-0.06), abs=0.05)
    with np.load(out, allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == {
        "values", "stderr", "low", "high", "stderr_by_source", "order", "unsettled", "interactions", "best_masks",
        "best_worths", "about",
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["values"], found["values"])
    np.testing.assert_array_equal(arrays["interactions"], pairs)
    np.testing.assert_array_equal(arrays["unsettled"], found["unsettled"])
    assert arrays["best_masks"].dtype == np.bool_
    assert np.flatnonzero(~arrays["best_masks"][N - 2]).tolist() == [4, 7]
    assert json.loads(str(arrays["about"]))["fit"] == found["fit"]

    status, printed, _ = shapley("--worths", worths, "--interactions", "--best-per-size")
    assert status == 0
    assert "Shapley interactions on the surrogate, strongest first" in " ".join(printed.split())
    assert "│ 4 7 " in printed


@pytest.mark.slow
def test_beyond_enumeration_a_pairwise_ridge_answers(
    shapley: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valuation, "_NODES", 20)  # the search for proofs is tested with best_masks
    wide = measured(tmp_path / "wide.npz", n=37)
    command = ("--worths", wide, "--interactions", "--best-per-size", "--samples", "200")
    found = json.loads(shapley(*command, "--json")[1])
    assert found["pairs_from"] == "pairwise ridge"
    assert np.array(found["interactions"]).shape == (37, 37)
    assert [row["kept"] for row in found["best_per_size"]] == list(range(38))
    assert found["best_per_size"][36]["removed"] == [2], "the one that costs nothing"
    status, printed, _ = shapley(*command)
    assert status == 0
    assert "best mask of each size, on the pairwise ridge" in " ".join(printed.split())


def test_players_go_by_their_names(shapley: Any, worths: Path, tmp_path: Path) -> None:
    kept = Worths.load(worths)
    halves = {**kept.fingerprints, "players": "sublayers"}
    path = tmp_path / "halves.npz"
    Worths(kept.masks, kept.worths, kept.nll, kept.window_nll, kept.window_tokens, halves).save(path)
    assert json.loads(shapley("--worths", path, "--json")[1])["players"][:3] == ["0.attn", "0.mlp", "1.attn"]
    for estimator in ("shapley", "stratified"):
        printed = shapley(
            "--worths", path, "--estimator", estimator, *(["--samples", "50"] * (estimator != "shapley"))
        )[1]
        assert "3.mlp" in printed
    groups = Worths(
        kept.masks[:, :2],
        kept.worths,
        kept.nll,
        kept.window_nll,
        kept.window_tokens,
        {"players": '[[0, 1], ["2.mlp"]]'},
    )
    assert groups.player_names == ["0+1", "2.mlp"]


def test_permutations_add_their_own_error(shapley: Any, worths: Path) -> None:
    exact = json.loads(shapley("--worths", worths, "--json")[1])
    sampled = json.loads(shapley("--worths", worths, "--samples", "100", "--json")[1])
    assert sampled["method"] == "permutation"
    assert min(sampled["stderr_by_source"]["sampling"][:2]) > 0
    np.testing.assert_allclose(sampled["values"], exact["values"], atol=0.1)


def test_worths_that_are_no_mean_over_windows_have_no_text_in_their_intervals(shapley: Any, tmp_path: Path) -> None:
    path = measured(tmp_path / "kl.npz", utility="kl", spoilt=3)
    found = json.loads(shapley("--worths", path, "--json")[1])
    assert found["text_counts"] is False
    assert found["stderr_by_source"]["text"] == [0.0] * N
    assert (found["n_masks"], found["n_dropped"]) == (397, 3)
    printed = shapley("--worths", path)[1]
    assert "not the text" in printed
    assert "3 dropped (worth not finite)" in printed


def test_masks_of_few_sizes_are_said_to_be_extrapolated_from(shapley: Any, tmp_path: Path) -> None:
    masks = stratified_masks(N, 80, seed=1, strata=[5, 6, 7])
    worths = GAME(masks)
    nll = -np.log(worths)
    Worths(masks, worths, nll, nll[:, None], np.array([9]), {"utility": "ppl_ratio"}).save(tmp_path / "w.npz")
    assert "keep 5 to 7 of 9 players" in shapley("--worths", tmp_path / "w.npz")[1]


def test_the_published_estimators_are_kept_and_written_too(shapley: Any, worths: Path, tmp_path: Path) -> None:
    out = tmp_path / "values.npz"
    status, printed, _ = shapley(
        "--worths", worths, "--estimator", "stratified", "--samples", "50", "--json", "--out", out
    )
    found = json.loads(printed)
    assert (status, found["method"]) == (0, "stratified_marginals")
    with np.load(out, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["values"], found["values"])


def test_wrong_requests_are_one_line(shapley: Any, worths: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.npz"
    taken.write_bytes(b"mine")
    for arguments, words in [
        (("--worths", worths, "--estimator", "stratified", "--interactions"), "belong to --estimator shapley"),
        (("--worths", worths, "--estimator", "exact"), "choose from shapley, stratified, permutation"),
        (("--worths", worths, "--samples", "3"), "n_permutations must be an even number"),
        (("--worths", worths, "--out", taken), "exists already"),
        (("--worths", measured(tmp_path / "bad.npz", spoilt=400)), "none of 400 worths is finite"),
    ]:
        status, printed, error = shapley(*arguments)
        assert (status, printed) == (2, ""), arguments
        assert words in error
        assert error.count("\n") == 1
    assert taken.read_bytes() == b"mine"


def test_a_device_that_is_not_there(shapley: Any, worths: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    status, printed, errors = shapley("--worths", worths, "--device", "cuda")
    assert (status, printed) == (2, "")
    assert errors == "layercoop-fast: device: there is no cuda here\n"
