from __future__ import annotations

import math
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_games import Additive, Redundant

from layercoop_fast import Surrogate
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.masks.stratified import all_masks, stratified_masks

N = 12


@pytest.fixture(scope="module")
def game() -> Redundant:
    return Redundant(N, [1, 6, 9])


@pytest.fixture(scope="module")
def pairs(game: Redundant) -> tuple[np.ndarray, np.ndarray]:
    masks = stratified_masks(N, 400, seed=5)
    return masks, game(masks)


@pytest.fixture(scope="module")
def surrogate(pairs: tuple[np.ndarray, np.ndarray]) -> Surrogate:
    return Surrogate.fit(*pairs, ensemble=5, seed=3)


def quietly(surrogate: Surrogate, masks: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return surrogate(masks)


def reference(networks: Networks, masks: np.ndarray) -> np.ndarray:
    """The formula in float64, written out: one row a network."""
    w, b, v, c = (
        array.astype(np.float64)
        for array in (networks.hidden_weight, networks.hidden_bias, networks.output_weight, networks.output_bias)
    )
    hidden = np.einsum("ehn,mn->emh", w, masks) + b[:, None]
    hidden = np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0)))
    return np.einsum("emh,eh->em", hidden, v) + c[:, None]


def test_answers_on_the_scale_of_the_worths_and_its_link_game_in_nats(surrogate: Surrogate) -> None:
    masks = all_masks(N)
    logs = reference(surrogate.networks, masks).mean(axis=0)
    worths = quietly(surrogate, masks)
    assert worths.dtype == np.float64
    np.testing.assert_allclose(surrogate.link_game(masks), logs, atol=2e-6)
    np.testing.assert_allclose(worths, np.exp(logs), rtol=2e-6)
    assert surrogate(masks[:0]).shape == (0,)
    assert surrogate.n_players == surrogate.link_game.n_players == N


def test_members_and_spread_are_the_networks(surrogate: Surrogate, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    masks = pairs[0][:37]
    each = reference(surrogate.networks, masks)
    assert len(surrogate.members) == 5
    for member, expected in zip(surrogate.members, each, strict=True):
        np.testing.assert_allclose(member(masks), expected, atol=2e-6)
    np.testing.assert_allclose(surrogate.spread(masks), each.std(axis=0, ddof=1), atol=2e-6)
    assert surrogate.spread(masks).min() > 0


def test_learns_more_than_a_line(surrogate: Surrogate, game: Redundant) -> None:
    masks = stratified_masks(N, 500, seed=77)
    quality = surrogate.quality
    assert quality.epochs > 0
    assert quality.linear < quality.inside.r2 <= 1
    assert surrogate.r2(masks, game(masks)) > quality.linear
    assert surrogate.r2(masks, game(masks)) > 0.99
    assert quality.history[0] == (0, 1.0, 1.0)
    assert min(inside for _, inside, _ in quality.history) < 0.5


def test_an_additive_game_stays_the_ridge_it_is() -> None:
    """Nothing is left to learn beyond the linear part, and no training may spoil it."""
    weights = np.linspace(-0.5, 2.0, 7)
    masks = stratified_masks(7, 300, seed=1, strata=[2, 3, 4, 5])
    surrogate = Surrogate.fit(masks, Additive(weights)(masks) - 9.0, ensemble=2)
    assert surrogate.link.scale == "identity"
    assert surrogate.quality.inside.r2 > 0.9999
    everything = all_masks(7)
    np.testing.assert_allclose(quietly(surrogate, everything), everything @ weights - 9.0, atol=0.02)


def test_quality_is_of_masks_held_out(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """Worths that are noise can be remembered and not foreseen: held-out figures must say so."""
    masks, _ = pairs
    noise = np.exp(np.random.default_rng(0).normal(size=len(masks)))
    quality = Surrogate.fit(masks, noise, ensemble=3).quality
    assert quality.inside.r2 < 0.1
    assert max(abs(tau) for tau in quality.inside.kendall.values() if not math.isnan(tau)) < 1
    assert quality.inside.coverage[0] < 0.68, "the networks agree more than they know"
    assert max(quality.outside.values()) < 0.1


def test_quality_covers_strata_inside_and_outside(surrogate: Surrogate, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    sizes = sorted(set(pairs[0].sum(axis=1).tolist()))
    assert list(surrogate.quality.outside) == sizes
    assert set(surrogate.quality.inside.kendall) <= set(sizes)
    assert 20 <= surrogate.quality.inside.n_pairs <= 80
    assert 0 <= surrogate.quality.inside.coverage[0] <= surrogate.quality.inside.coverage[1] <= 1


def test_report_judges_other_pairs(surrogate: Surrogate, game: Redundant) -> None:
    masks = stratified_masks(N, 100, seed=8)
    report = surrogate.report(masks, game(masks))
    assert report.n_pairs == 100
    assert report.r2 == surrogate.r2(masks, game(masks))
    error = np.abs(np.log(game(masks)) - surrogate.link_game(masks))
    assert report.coverage[1] == (error <= 2 * surrogate.spread(masks)).mean()


def test_warns_once_about_masks_far_from_its_data(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    surrogate = Surrogate.fit(*pairs, ensemble=1)
    none, some = np.zeros((1, N), dtype=bool), pairs[0][:50]
    assert surrogate.far(np.concatenate([none, some])).tolist() == [True] + [False] * 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surrogate(some)
    with pytest.warns(UserWarning, match=r"1 of 51 masks asked are far .*400 masks that keep 7 to 11 of 12") as warned:
        surrogate(np.concatenate([none, some]))
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surrogate(none)


def test_a_player_that_was_never_removed_is_far(game: Redundant) -> None:
    masks = stratified_masks(N, 200, seed=1, strata=[6, 7, 8, 9])
    masks = masks[masks[:, 4]]
    surrogate = Surrogate.fit(masks, game(masks), ensemble=1)
    without = masks[masks.sum(axis=1) > 6]
    assert not surrogate.far(without).any()
    without[:, 4] = False
    assert surrogate.far(without).all()


def test_updates_learn_the_new_without_losing_the_old(game: Redundant) -> None:
    masks, unseen = stratified_masks(N, 300, seed=1), stratified_masks(N, 300, seed=2)
    wider = stratified_masks(N, 200, seed=3, strata=[4, 5, 6])
    surrogate = Surrogate.fit(masks, game(masks), ensemble=3, seed=1)
    updated = surrogate.update(wider, game(wider))
    others = stratified_masks(N, 200, seed=4, strata=[4, 5, 6])
    error = [float((np.abs(np.log(game(others)) - s.link_game(others))).mean()) for s in (surrogate, updated)]
    assert error[1] < error[0] / 2
    assert updated.r2(unseen, game(unseen)) > 0.98
    assert surrogate.far(others).tolist() == (others.sum(axis=1) < 6).tolist(), "next to the fitted strata is near"
    assert not updated.far(others).any()
    np.testing.assert_array_equal(updated.counts[:300], surrogate.counts)
    assert len(updated.update(wider[:1], game(wider[:1])).targets) == 501


def test_a_seed_is_a_fit_whatever_the_threads_and_the_global_random_state(
    pairs: tuple[np.ndarray, np.ndarray],
) -> None:
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    first = Surrogate.fit(*pairs, ensemble=2, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    try:
        torch.set_num_threads(3)
        again = Surrogate.fit(*pairs, ensemble=2, seed=9)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(first.networks.hidden_weight, again.networks.hidden_weight)
    assert first.quality == again.quality
    other = Surrogate.fit(*pairs, ensemble=2, seed=10)
    assert not np.array_equal(first.networks.hidden_weight, other.networks.hidden_weight)


def test_saved_and_loaded_is_the_same_and_can_be_updated(
    surrogate: Surrogate, pairs: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "surrogate.safetensors"
    surrogate.save(path)
    loaded = Surrogate.load(path)
    np.testing.assert_array_equal(loaded(pairs[0]), surrogate(pairs[0]))
    np.testing.assert_equal(asdict(loaded.quality), asdict(surrogate.quality))
    new = pairs[0][:7], pairs[1][:7]
    np.testing.assert_array_equal(loaded.update(*new)(pairs[0]), surrogate.update(*new)(pairs[0]))
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing temporary is left"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RequestError, match=r"cannot be read|damaged safetensors file"):
        Surrogate.load(path)


@pytest.mark.parametrize(("n", "count"), [(1, 1), (1, 60), (2, 3), (2, 60), (13, 17), (33, 60)])
def test_small_and_odd_games_can_be_fitted(n: int, count: int) -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((count, n)) < 0.6
    surrogate = Surrogate.fit(masks, np.exp(masks.mean(axis=1)), ensemble=2)
    assert np.isfinite(surrogate(masks)).all()
    expected = np.exp(reference(surrogate.networks, masks).mean(axis=0))
    np.testing.assert_allclose(surrogate(masks), expected, rtol=1e-5)
    assert surrogate.networks.hidden_weight.shape == (2, max(2, 2 * n), n)


def test_worths_of_zero_are_floored_and_constant_worths_are_constant() -> None:
    masks = stratified_masks(6, 80, seed=0)
    worths = np.where(masks[:, 0], 0.5, 0.0)
    assert Surrogate.fit(masks, worths, ensemble=1)(masks).max() == pytest.approx(0.5, rel=1e-3)
    surrogate = Surrogate.fit(masks, np.full(80, 0.25), ensemble=2)
    np.testing.assert_allclose(surrogate(masks), 0.25, rtol=1e-4)
    assert math.isnan(surrogate.quality.inside.r2)


@pytest.mark.parametrize(
    ("masks", "worths", "options", "words"),
    [
        (np.ones((3, 2), dtype=bool), [0.5, np.nan, np.inf], {}, "2 of 3 worths are NaN or infinite: drop those pairs"),
        (np.ones((3, 2), dtype=bool), [0.5, 0.5], {}, "3 masks need worths"),
        (np.ones((3, 2)), [0.5] * 3, {}, "dtype bool"),
        (np.ones((0, 2), dtype=bool), [], {}, "at least one pair"),
        (np.ones((3, 2), dtype=bool), [-0.5] * 3, {"scale": "log"}, "3 of 3 worths are negative"),
        (np.ones((3, 2), dtype=bool), [0.5] * 3, {"ensemble": 0}, "ensemble must be at least 1"),
        (np.ones((3, 2), dtype=bool), [0.5] * 3, {"hidden": 1}, "hidden at least 2"),
    ],
)
def test_bad_pairs_are_refused(masks: np.ndarray, worths: list[float], options: dict[str, int], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Surrogate.fit(masks, np.array(worths), **options)  # type: ignore[arg-type]


def test_masks_of_another_width_are_refused(surrogate: Surrogate) -> None:
    wide = np.ones((2, N + 1), dtype=bool)
    for ask in (surrogate, surrogate.spread, surrogate.far, lambda m: surrogate.update(m, np.ones(2))):
        with pytest.raises(RequestError, match=r"shape \[M, 12\]"):
            ask(wide)


def test_more_players_than_the_pairwise_reference_takes_can_be_fitted() -> None:
    masks = np.random.default_rng(0).random((120, 46)) < 0.7
    quality = Surrogate.fit(masks, np.exp(masks.mean(axis=1)), ensemble=2).quality
    assert math.isnan(quality.pairwise)
    assert quality.linear > 0.9


def test_an_update_learns_in_closed_form_what_a_player_costs_that_was_never_removed() -> None:
    """A few epochs alone would be far from it: the linear part has to move at once."""
    game = Additive(np.array([1.0, 0.5, 2.0, 0.2, 3.0, 0.7, 1.5]))
    masks = stratified_masks(7, 300, seed=1, strata=[3, 4, 5])
    with_it, fresh = masks.copy(), masks[:150].copy()
    with_it[:, 4], fresh[:, 4] = True, False
    surrogate = Surrogate.fit(with_it, game(with_it) - 20, ensemble=2)
    updated = surrogate.update(fresh, game(fresh) - 20)
    without = with_it.copy()
    without[:, 4] = False
    difference = updated.link_game(with_it) - updated.link_game(without)
    assert np.abs(difference.mean() - 3.0) < 0.1


@pytest.mark.parametrize("damage", ["scale", "masks", "targets", "counts", "quality"])
def test_a_damaged_file_is_one_line(surrogate: Surrogate, tmp_path: Path, damage: str) -> None:
    import json

    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "fit.safetensors"
    surrogate.save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    header = json.loads(metadata["header"])
    if damage in arrays:
        arrays[damage] = arrays[damage][:-1].copy()
    else:
        header[damage] = {} if damage == "quality" else "weird"
    save_file(arrays, path, {**metadata, "header": json.dumps(header)})
    with pytest.raises(RequestError, match=r"damaged|unknown scale"):
        Surrogate.load(path)


def test_copies_of_one_mask_are_no_stratum() -> None:
    """All sizes are measured, the two ends by the same mask again and again."""
    masks = stratified_masks(N, 600, seed=1, strata=range(N + 1))
    fitted = Surrogate.fit(masks, Redundant(N, [1])(masks), ensemble=2)
    assert fitted.quality.outside
    assert all(0 < size < N and math.isfinite(r2) for size, r2 in fitted.quality.outside.items())
