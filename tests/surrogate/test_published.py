from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_games import Redundant

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import all_masks, stratified_masks
from layercoop_fast.surrogate.pairs import finite_pairs
from layercoop_fast.surrogate.published import PublishedSurrogate
from layercoop_fast.surrogate.threads import one_thread

N = 12


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    masks = stratified_masks(N, 1000, seed=5)
    return masks, Redundant(N, [1, 6, 9])(masks)


@pytest.fixture(scope="module")
def surrogate(pairs: tuple[np.ndarray, np.ndarray]) -> PublishedSurrogate:
    return PublishedSurrogate.fit(*pairs, epochs=60, lr=0.3, seed=3)


def reference(surrogate: PublishedSurrogate, masks: np.ndarray) -> np.ndarray:
    """The formula in float64, written out."""
    w, b = surrogate.hidden_weight.double().numpy(), surrogate.hidden_bias.double().numpy()
    v, c = surrogate.output_weight.double().numpy(), surrogate.output_bias.double().numpy()
    hidden = masks @ w.T + b
    hidden = np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0)))
    return 1 / (1 + np.exp(-(hidden @ v + c)))


def test_values_are_the_formula(surrogate: PublishedSurrogate) -> None:
    masks = np.concatenate([all_masks(N), all_masks(N)[:7]])  # more than one block, the last one short
    worths = surrogate(masks)
    assert worths.dtype == np.float64
    np.testing.assert_allclose(worths, reference(surrogate, masks), rtol=2e-6)
    assert surrogate(masks[:0]).shape == (0,)


def test_flips_are_the_neighbours_worths(surrogate: PublishedSurrogate) -> None:
    masks = all_masks(N)[::-1][:4100]
    worths, flipped = surrogate.flips(masks)
    np.testing.assert_allclose(worths, reference(surrogate, masks), rtol=2e-6)
    for player in range(N):
        neighbours = masks.copy()
        neighbours[:, player] ^= True
        np.testing.assert_allclose(flipped[:, player], reference(surrogate, neighbours), rtol=2e-6)


def test_architecture_is_as_published(surrogate: PublishedSurrogate) -> None:
    assert surrogate.hidden_weight.shape == (2 * N, N)
    assert surrogate.hidden_bias.shape == surrogate.output_weight.shape == (2 * N,)
    assert surrogate.output_bias.shape == ()
    assert surrogate.n_players == N


def test_recipe_is_as_published() -> None:
    """The default schedule against a plain loop with torch's own modules, from the same start and in the same order."""
    masks = stratified_masks(6, 700, seed=1)
    worths = Redundant(6, [2])(masks)
    start = PublishedSurrogate.fit(masks, worths, seed=4, epochs=1, lr=0.0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.CELU(), torch.nn.Linear(12, 1), torch.nn.Sigmoid())
    model.load_state_dict(
        {
            "0.weight": start.hidden_weight,
            "0.bias": start.hidden_bias,
            "2.weight": start.output_weight[None],
            "2.bias": start.output_bias[None],
        }
    )
    generator = torch.Generator().manual_seed(4)
    for numel in (72, 12, 12, 1):  # the draws that the start took
        torch.empty(numel).uniform_(generator=generator)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.008, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 100, 0.1)
    x, y = torch.tensor(masks, dtype=torch.float32), torch.tensor(worths, dtype=torch.float32)
    with one_thread():
        for _ in range(300):
            for batch in torch.randperm(700, generator=generator).split(300):
                optimiser.zero_grad()
                torch.nn.functional.mse_loss(model(x[batch])[:, 0], y[batch]).backward()
                optimiser.step()
            schedule.step()
    fitted = PublishedSurrogate.fit(masks, worths, seed=4)
    assert len(fitted.history) == 300
    np.testing.assert_allclose(fitted.hidden_weight, model[0].weight.detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fitted.output_weight, model[2].weight.detach()[0], rtol=1e-4, atol=1e-6)


def test_learns(surrogate: PublishedSurrogate, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    assert surrogate.history[-1] < surrogate.history[0] / 5
    assert 0.8 < surrogate.r2(*pairs) <= 1
    masks, worths = pairs
    error = ((worths - surrogate(masks)) ** 2).mean()
    assert surrogate.r2(*pairs) == pytest.approx(1 - error / worths.var())
    assert np.isnan(surrogate.r2(masks, np.full(len(masks), 0.5)))


def test_a_seed_is_a_fit_and_the_global_random_state_is_left_alone(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    before = torch.get_rng_state()
    first = PublishedSurrogate.fit(*pairs, seed=9, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = PublishedSurrogate.fit(*pairs, seed=9, epochs=2)
    other = PublishedSurrogate.fit(*pairs, seed=10, epochs=2)
    assert first.history == again.history
    assert torch.equal(first.hidden_weight, again.hidden_weight)
    assert not torch.equal(first.hidden_weight, other.hidden_weight)


def test_the_thread_count_is_put_back(surrogate: PublishedSurrogate) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        surrogate(np.ones((1, N), dtype=bool))
        with pytest.raises(RequestError):
            surrogate(np.ones((1, N + 1), dtype=bool))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_tells_each_epoch(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    told: list[tuple[int, float]] = []
    fitted = PublishedSurrogate.fit(*pairs, epochs=3, on_epoch=lambda epoch, loss: told.append((epoch, loss)))
    assert told == list(zip([1, 2, 3], fitted.history, strict=True))


def test_finite_pairs_drop_mask_and_worth_together() -> None:
    """Each worth spells its own mask, so a shift by one pair cannot go unseen."""
    masks = stratified_masks(10, 400, seed=2)
    worths = (masks @ (1 << np.arange(10))).astype(np.float64)
    spoilt = np.random.default_rng(0).random(400) < 0.3
    worths[spoilt] = np.resize([np.nan, np.inf, -np.inf], spoilt.sum())
    kept_masks, kept_worths, n_dropped = finite_pairs(masks, worths)
    assert n_dropped == spoilt.sum() > 0
    np.testing.assert_array_equal(kept_masks @ (1 << np.arange(10)), kept_worths)
    np.testing.assert_array_equal(kept_masks, masks[~spoilt])


def test_saved_and_loaded_is_the_same(surrogate: PublishedSurrogate, tmp_path: Path) -> None:
    path = tmp_path / "surrogate.safetensors"
    path.write_bytes(b"an older one")
    surrogate.save(path)
    loaded = PublishedSurrogate.load(path)
    masks = all_masks(N)[:100]
    np.testing.assert_array_equal(loaded(masks), surrogate(masks))
    assert loaded.history == surrogate.history
    assert loaded.n_players == N
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing temporary is left"


def test_unreadable_files_are_one_clear_line(surrogate: PublishedSurrogate, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "surrogate.safetensors"
    with pytest.raises(RequestError, match=r"cannot be read|damaged safetensors file"):
        PublishedSurrogate.load(path)
    surrogate.save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RequestError, match=r"cannot be read|damaged safetensors file"):
        PublishedSurrogate.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(RequestError, match="not a surrogate"):
        PublishedSurrogate.load(path)


@pytest.mark.parametrize(
    ("masks", "worths", "options", "words"),
    [
        (np.ones((3, 2), dtype=bool), [0.5, np.nan, np.inf], {}, "2 of 3 worths are NaN or infinite: drop those pairs"),
        (np.ones((3, 2), dtype=bool), [0.5, 0.5], {}, "3 masks need worths"),
        (np.ones((3, 2)), [0.5] * 3, {}, "dtype bool"),
        (np.ones((0, 2), dtype=bool), [], {}, "at least one pair"),
        (np.ones((3, 2), dtype=bool), [0.5] * 3, {"batch_size": 0}, "at least 1"),
    ],
)
def test_bad_pairs_are_refused(masks: np.ndarray, worths: list[float], options: dict[str, int], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        PublishedSurrogate.fit(masks, np.array(worths), **options)  # type: ignore[arg-type]


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    good = [torch.zeros(4, 2), torch.zeros(4), torch.zeros(4), torch.zeros(())]
    PublishedSurrogate(*good)
    with pytest.raises(RequestError, match="2n, n"):
        PublishedSurrogate(torch.zeros(3, 2), *good[1:])
    with pytest.raises(RequestError, match="float32"):
        PublishedSurrogate(*(tensor.double() for tensor in good))
