"""The game on a model: right against the model itself, and the same number whatever is asked beside it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, save_tiny, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.utility import Utility
from layercoop_fast.texts.calibration import Calibration

L = 6


def windows_of(n_windows: int, tokens: int, seed: int = 0) -> Calibration:
    ids = torch.randint(3, 256, (n_windows, tokens), generator=torch.Generator().manual_seed(seed))
    return Calibration(ids, "test")


def game_of(
    family: str = "llama",
    *,
    n_windows: int = 3,
    tokens: int = 20,
    n_layers: int = L,
    block_path: str = "auto",
    **options,
) -> ModelGame:
    model = FAMILIES[family](n_layers=n_layers)
    return ModelGame(
        Checkpoint(model, tiny_tokenizer(), family), windows_of(n_windows, tokens), block_path=block_path, **options
    )


def random_masks(count: int, n: int = L, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, n)) < 0.6


def test_nll_of_the_full_model_is_the_models_own_loss() -> None:
    game = game_of()
    measured = game.evaluate(np.ones((1, L), bool))
    model, ids = game.checkpoint.model, game.calibration.ids
    with torch.inference_mode():
        for window in range(3):
            loss = model(input_ids=ids[window : window + 1], labels=ids[window : window + 1]).loss
            assert measured.window_nll[0, window] == pytest.approx(float(loss), rel=1e-6)
    assert measured.nll[0] == pytest.approx(measured.window_nll[0].mean(), rel=1e-15)
    assert measured.worths[0] == 1.0
    assert measured.window_tokens.tolist() == [19, 19, 19]


@pytest.mark.parametrize(
    ("family", "block_path", "path"),
    [
        ("llama", "auto", ("fast", "fused")),
        ("llama", "hf", ("hf", "hf")),
        ("qwen3", "auto", ("fast", "fused")),
        ("gemma2", "auto", ("hf", "fused")),
        ("gpt2", "hf", ("hf", "hf")),
        ("opt", "auto", ("hf", "fused")),
        ("mamba", "hf", ("hf", "hf")),
    ],
)
def test_worths_do_not_depend_on_company_order_or_memory(
    family: str, block_path: str, path: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 on the CPU: bitwise."""
    monkeypatch.setitem(game_of.__kwdefaults__, "block_path", block_path)
    numerics = game_of(family).fingerprints["numerics"]
    assert (numerics["blocks"], numerics["head"]) == path
    masks = np.concatenate([random_masks(12), np.zeros((1, L), bool), np.ones((1, L), bool)])
    together = game_of(family).evaluate(masks)
    alone = np.array([game_of(family).evaluate(mask[None]).window_nll[0] for mask in masks[:4]])
    assert np.array_equal(together.window_nll[:4], alone)
    order = np.random.default_rng(1).permutation(len(masks))
    assert np.array_equal(game_of(family).evaluate(masks[order]).window_nll, together.window_nll[order])
    state = game_of(family).masked.windows.state_bytes
    for states in (1, 2, 3, 7):
        budgeted = game_of(family, memory=states * state)
        assert np.array_equal(budgeted.evaluate(masks).window_nll, together.window_nll), f"{states} states"
    in_two_calls = game_of(family)
    in_two_calls.evaluate(masks[:5])
    assert np.array_equal(in_two_calls.evaluate(masks).window_nll, together.window_nll)


@pytest.mark.parametrize("block_path", ["auto", "hf"])
@pytest.mark.parametrize(("n_windows", "tokens"), [(1, 2), (1, 5), (2, 3), (1, 16), (7, 13)])
def test_few_tokens_are_as_independent_of_company_as_many(
    n_windows: int, tokens: int, block_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of fewer than 16 rows are padded: a product of one row is computed another way than one of many."""
    monkeypatch.setitem(game_of.__kwdefaults__, "block_path", block_path)
    masks = random_masks(8)
    together = game_of(n_windows=n_windows, tokens=tokens).evaluate(masks)
    for mask, row in zip(masks, together.window_nll, strict=True):
        assert np.array_equal(game_of(n_windows=n_windows, tokens=tokens).evaluate(mask[None]).window_nll[0], row)


def test_the_batch_width_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = random_masks(20)
    wide = game_of().evaluate(masks)
    for rows in (1, 120, 180):
        monkeypatch.setattr("layercoop_fast.masked.batch_width.ROWS_PER_CALL", rows)
        assert np.array_equal(game_of().evaluate(masks).window_nll, wide.window_nll)


def test_the_head_tile_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = random_masks(5)
    whole = game_of(utility="kl", block_path="hf").evaluate(masks)
    monkeypatch.setattr("layercoop_fast.masked.scoring.HEAD_BYTES", 1)
    tiled = game_of(utility="kl", block_path="hf").evaluate(masks)
    assert np.array_equal(tiled.window_nll, whole.window_nll)
    assert np.array_equal(tiled.worths, whole.worths)


@pytest.mark.parametrize("block_path", ["auto", "hf"])
def test_kl_against_a_float64_reference(block_path: str) -> None:
    game = game_of(utility="kl", block_path=block_path)
    masks = np.concatenate([random_masks(4), np.ones((1, L), bool)])
    worths = game(masks)
    model, ids = game.checkpoint.model, game.calibration.ids
    with torch.inference_mode():
        full = model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
        context = game.masked.skeleton.context(ids)
        for mask, worth in zip(masks, worths, strict=True):
            hidden = context.embedding
            for layer in np.flatnonzero(mask):
                hidden = context.run(int(layer), hidden)
            log_q = context.logits(hidden)[:, :-1].double().log_softmax(-1)
            expected = float((full.exp() * (full - log_q)).sum(-1).mean())
            assert -worth == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert worths[-1] == 0.0


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_fast_path_is_the_general_one_within_rounding(family: str) -> None:
    masks = random_masks(10)
    fast, general = game_of(family, tokens=8), game_of(family, tokens=8, block_path="hf")
    assert fast.fingerprints["numerics"]["blocks"] == "fast", "not active"
    assert general.fingerprints["numerics"]["blocks"] == "hf"
    assert fast.evaluate(masks).window_nll == pytest.approx(general.evaluate(masks).window_nll, rel=1e-5)


def test_bf16_is_near_fp32_and_the_same_in_every_run() -> None:
    masks = random_masks(12)

    def measured(dtype: torch.dtype) -> ModelGame:
        model = FAMILIES["llama"](n_layers=L).to(dtype)
        return ModelGame(Checkpoint(model, tiny_tokenizer(), "llama"), windows_of(3, 20))

    exact = measured(torch.float32).evaluate(masks).window_nll
    rounded = measured(torch.bfloat16).evaluate(masks).window_nll
    assert rounded == pytest.approx(exact, rel=0.02)
    assert np.array_equal(measured(torch.bfloat16).evaluate(masks).window_nll, rounded)


def test_ppl_ratio_and_nll_are_what_they_say() -> None:
    masks = random_masks(6)
    ratio, nll = game_of().evaluate(masks), game_of(utility="nll").evaluate(masks)
    full = game_of().evaluate(np.ones((1, L), bool)).nll[0]
    assert np.array_equal(nll.worths, -nll.nll)
    assert ratio.worths == pytest.approx([math.exp(full) / math.exp(value) for value in ratio.nll], rel=1e-12)


def test_a_users_own_utility() -> None:
    game = game_of(utility=Utility("bits", False, lambda nll, kl, full: -nll / math.log(2)))
    measured = game.evaluate(random_masks(3))
    assert measured.worths == pytest.approx(-measured.nll / math.log(2))
    assert measured.fingerprints["utility"] == "bits"


def test_evaluations_are_counted_and_known_masks_are_free() -> None:
    game = game_of()
    masks = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 1]], bool)
    game(masks)
    # Prefixes 1, 11, 111, 1111, 11111 (mask 0 and the full model), the full model's sixth, and 1111·1.
    counts = game.evaluations
    assert (counts.masks, counts.unique, counts.layer_evals, counts.layer_evals_naive) == (3, 3, 7, 18)
    game(masks)
    assert (counts.masks, counts.unique, counts.layer_evals, counts.layer_evals_naive) == (6, 3, 7, 36)


def test_progress_ends_at_the_total() -> None:
    seen = []
    game = game_of(on_progress=lambda stage, done, total: seen.append((stage, done, total)))
    game(random_masks(9))
    # Heads count for as many layer evaluations as they take FLOP.
    units, head = game.masked.flops
    total = round(game.evaluations.layer_evals + game.evaluations.unique * head / units.mean())
    assert total > game.evaluations.layer_evals
    assert seen[-1] == ("layer evaluations", total, total)


def test_nan_and_infinite_worths_are_carried_and_shift_nothing() -> None:
    game = game_of()
    with torch.no_grad():
        game.masked.skeleton.blocks[2].mlp.down_proj.weight.fill_(torch.nan)
    masks = random_masks(10)
    measured = game.evaluate(masks)
    assert np.isnan(measured.worths).tolist() == masks[:, 2].tolist() or np.isnan(measured.worths).all()
    assert np.isnan(measured.nll).tolist() == masks[:, 2].tolist()
    assert measured.n_not_finite == int(np.isnan(measured.worths).sum()) > 0


def test_block_influence_against_the_formula() -> None:
    game = game_of()
    influence = game.block_influence()
    with torch.inference_mode():
        hidden = game.checkpoint.model(input_ids=game.calibration.ids, output_hidden_states=True).hidden_states
    before, after = hidden[0].double(), hidden[1].double()
    cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    assert influence[0] == pytest.approx(1 - float(cosine.mean()), rel=1e-9)
    assert influence.shape == (L,)


def test_no_masks_give_no_worths() -> None:
    measured = game_of().evaluate(np.empty((0, L), bool))
    assert measured.worths.shape == (0,)
    assert measured.window_nll.shape == (0, 3)


@pytest.mark.parametrize("masks", [np.ones((2, L + 1), bool), np.ones((2, L)), np.ones(L + 1, bool), [[True] * L]])
def test_wrong_masks_are_refused(masks: object) -> None:
    with pytest.raises(RequestError, match="masks must be"):
        game_of()(masks)  # type: ignore[arg-type]


def test_a_budget_below_one_state_names_the_smallest_that_works() -> None:
    state = game_of().masked.windows.state_bytes
    with pytest.raises(RequestError, match=f"smallest that works is {state} bytes"):
        game_of(memory=state - 1)
    assert np.isfinite(game_of(memory=state)(random_masks(3))).all()


def test_from_pretrained_reads_a_folder(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    game = ModelGame.from_pretrained(str(tmp_path / "model"), "builtin", windows=2, tokens=24, utility="nll")
    assert game.n_players == L
    assert game.calibration.ids.shape == (2, 24)
    assert game(np.ones((1, L), bool))[0] < 0
    with pytest.raises(RequestError, match="unknown utility 'speed': choose from ppl_ratio, nll, kl"):
        ModelGame.from_pretrained(str(tmp_path / "model"), utility="speed")
    with pytest.raises(RequestError, match="unknown players"):
        ModelGame.from_pretrained(str(tmp_path / "model"), players="heads")


def test_fingerprints_tell_models_and_texts_apart() -> None:
    game = game_of()
    other = game_of()
    assert other.fingerprints == game.fingerprints
    with torch.no_grad():
        other.checkpoint.model.lm_head.weight[5, 3] += 1
    assert ModelGame(other.checkpoint, other.calibration).fingerprints["model"] != game.fingerprints["model"]
    elsewhere = ModelGame(game.checkpoint, windows_of(3, 20, seed=9))
    assert elsewhere.fingerprints["calibration"] != game.fingerprints["calibration"]


@pytest.mark.parametrize("utility", ["nll", "kl"])
@pytest.mark.parametrize(("family", "block_path"), [("llama", "auto"), ("llama", "hf"), ("gemma2", "auto")])
@pytest.mark.parametrize("every", [1, 4, 19])
def test_every_so_many_th_position_is_scored(family: str, block_path: str, utility: str, every: int) -> None:
    """Against the means over chosen positions of the model with its blocks removed."""
    masks = np.concatenate([random_masks(6), np.ones((1, L), bool)])
    game = game_of(family, block_path=block_path, score_every=every, utility=utility)
    measured = game.evaluate(masks)
    positions = list(range(every - 1, 19, every))
    assert measured.window_tokens.tolist() == [len(positions)] * 3
    context = game.masked.skeleton.context(game.calibration.ids)

    def log_probabilities(mask: np.ndarray) -> torch.Tensor:
        hidden = context.embedding
        for layer in np.flatnonzero(mask):
            hidden = context.run(int(layer), hidden)
        return context.logits(hidden).double().log_softmax(-1)[:, positions]

    full = log_probabilities(masks[-1])
    targets = game.calibration.ids[:, [position + 1 for position in positions]]
    for mask, nll, worth in zip(masks, measured.window_nll, measured.worths, strict=True):
        found = log_probabilities(mask)
        expected = -found.gather(-1, targets[..., None])[..., 0].mean(1)
        np.testing.assert_allclose(nll, expected, rtol=1e-5)
        if utility == "kl":
            divergence = (full.exp() * (full - found)).sum(-1).mean()
            assert worth == pytest.approx(-float(divergence), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("players", ["layers", "sublayers"])
def test_a_worth_of_some_positions_belongs_to_its_mask_alone(players: str) -> None:
    """A mask's last state is computed whole where it is a prefix of another mask's, and in part where it is not."""

    def game(**options) -> ModelGame:
        return game_of(score_every=3, players=players, **options)

    masks = random_masks(14, game().n_players)
    masks[1] = masks[0]
    masks[1, np.flatnonzero(masks[0])[-1]] = False  # a prefix of the first
    together = game().evaluate(masks)
    state = game().masked.windows.state_bytes
    for memory in (state, 3 * state):
        assert np.array_equal(game(memory=memory).evaluate(masks).window_nll, together.window_nll)
    for mask, row in zip(masks, together.window_nll, strict=True):
        assert np.array_equal(game().evaluate(mask[None]).window_nll[0], row)


def test_how_many_positions_are_scored_is_part_of_what_a_worth_is(tmp_path: Path) -> None:
    prints = [game_of(score_every=every).fingerprints for every in (1, 2)]
    assert [each["score_every"] for each in prints] == [1, 2]
    for every in (0, 20):
        with pytest.raises(RequestError, match="score_every must be from 1 to 19"):
            game_of(score_every=every)


def test_standard_error_over_windows() -> None:
    measured = game_of().evaluate(random_masks(5))
    expected = measured.window_nll.std(axis=1, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(measured.nll_stderr, expected, rtol=1e-12)
    assert np.isnan(game_of(n_windows=1).evaluate(random_masks(2)).nll_stderr).all()


def test_batches_that_show_in_the_bits_are_not_made() -> None:
    """torch's attention gives other bits in a batch for heads of 10: such a model runs one state at a time."""
    model = FAMILIES["mistral"](n_layers=L, head_dim=10, sliding_window=5)
    text = windows_of(3, 23)

    def game(**options) -> ModelGame:
        return ModelGame(Checkpoint(model, tiny_tokenizer(), "mistral"), text, **options)

    masks = random_masks(20)
    together = game().evaluate(masks)
    state = game().masked.windows.state_bytes
    assert np.array_equal(game(memory=2 * state).evaluate(masks[::-1]).window_nll[::-1], together.window_nll)
    for mask, row in zip(masks[:6], together.window_nll, strict=False):
        assert np.array_equal(game().evaluate(mask[None]).window_nll[0], row)
