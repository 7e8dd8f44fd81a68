"""What the full model alone says, against plain loops over its own hidden states and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.texts.calibration import Calibration, load_calibration

L, W, T = 6, 3, 20


def game_of(family: str = "llama", *, tokens: int = T, **options) -> ModelGame:
    ids = torch.randint(3, 256, (W, tokens), generator=torch.Generator().manual_seed(0))
    return ModelGame(
        Checkpoint(FAMILIES[family](n_layers=L), tiny_tokenizer(), family), Calibration(ids, "t"), **options
    )


def hidden_states(game: ModelGame) -> list[torch.Tensor]:
    """The stream before each block as transformers tells it, and that behind the last, which it norms, by a hook."""
    seen: list[torch.Tensor] = []
    handle = game.masked.skeleton.blocks[-1].register_forward_hook(
        lambda _, __, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.inference_mode():
        states = game.checkpoint.model(input_ids=game.calibration.ids, output_hidden_states=True).hidden_states
    handle.remove()
    return [*states[:L], seen[0]]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("run", [1, 3, 5])
def test_angular_distances_against_a_loop_over_hidden_states(family: str, run: int) -> None:
    game = game_of(family)
    states = hidden_states(game)
    expected = []
    for start in range(L - run + 1):
        angles = []
        for window in range(W):
            a, b = states[start][window, -1].double(), states[start + run][window, -1].double()
            angles.append(math.acos(float(a @ b / (a.norm() * b.norm()))) / math.pi)
        expected.append(sum(angles) / W)
    np.testing.assert_allclose(game.angular_distances(run), expected, rtol=1e-6)


def test_angular_distances_of_groups_and_of_few_tokens() -> None:
    """Two blocks a player; and batches of fewer than 16 tokens, which are padded."""
    pairs = game_of(players=[[0, 1], [2, 3], [4, 5]])
    np.testing.assert_allclose(pairs.angular_distances(2), game_of().angular_distances(4)[[0, 2]], rtol=1e-12)
    halves = game_of(players="sublayers")
    np.testing.assert_allclose(halves.angular_distances(6)[::2], game_of().angular_distances(3), rtol=1e-12)
    few = game_of(tokens=2)
    assert few.angular_distances(2).shape == (L - 1,)
    for groups in ([[0], [2], [3]], [[1], [0], [2]]):
        with pytest.raises(RequestError, match="these groups do not"):
            game_of(players=groups).angular_distances(1)


def by_hand(game: ModelGame, names: list[str]) -> list[float]:
    """Σ |w · ∂L/∂w| of the parameters under each name, L the mean over all next tokens, by one plain backward."""
    model, ids = game.checkpoint.model, game.calibration.ids
    logits = model(input_ids=ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    parameters = dict(model.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    return [
        sum(
            float((parameters[key].detach() * gradients[key]).abs().sum())
            for key in parameters
            if key.startswith(f"{name}.")
        )
        for name in names
    ]


@pytest.mark.parametrize("block_path", ["auto", "hf"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_taylor_importance_against_autograd(family: str, block_path: str) -> None:
    game = game_of(family, block_path=block_path)
    expected = by_hand(game, [f"model.layers.{layer}" for layer in range(L)])
    np.testing.assert_allclose(game.taylor_importance(), expected, rtol=1e-4)
    assert game.evaluations.token_evals == 3 * L * W * T
    assert all(one.grad is None and one.requires_grad for one in game.checkpoint.model.parameters())


def test_taylor_importance_of_halves_and_groups() -> None:
    halves = game_of(players="sublayers")
    names = [f"model.layers.{layer}.{part}" for layer in range(L) for part in ("self_attn", "mlp")]
    found = halves.taylor_importance()
    np.testing.assert_allclose(found, by_hand(halves, names), rtol=1e-4)
    grouped = game_of(players=[["0.attn", "2.mlp"], ["5.mlp"]]).taylor_importance()
    np.testing.assert_allclose(grouped, [found[0] + found[5], found[11]], rtol=1e-9)


def test_taylor_leaves_the_game_as_it_was() -> None:
    game, mask = game_of(), np.array([[1, 1, 0, 1, 0, 1]], bool)
    game.checkpoint.model.lm_head.weight.requires_grad_(False)
    told = []
    game.taylor_importance(lambda *report: told.append(report))
    assert not game.checkpoint.model.lm_head.weight.requires_grad
    np.testing.assert_array_equal(game(mask), game_of()(mask))
    assert told[-1] == ("windows forward and backward", W, W)


def test_taylor_after_masks_were_scored_by_the_models_own_head() -> None:
    """Measuring runs in inference mode, whose tensors must not get into the backward pass."""
    expected = game_of(block_path="hf").taylor_importance()
    game = game_of(block_path="hf")
    game(np.ones((1, L), dtype=bool))
    assert np.array_equal(game.taylor_importance(), expected)


def test_taylor_on_text_that_the_model_wrote() -> None:
    skeleton = game_of().masked.skeleton
    own = load_calibration("self", tiny_tokenizer(), skeleton, windows=2, tokens=8)
    game = ModelGame(Checkpoint(skeleton.model, tiny_tokenizer(), "llama"), own, skeleton=skeleton)
    assert np.isfinite(game.taylor_importance()).all()


def test_positions_that_are_not_scored_have_no_gradient() -> None:
    assert not np.allclose(game_of(score_every=4).taylor_importance(), game_of().taylor_importance(), rtol=1e-3)


def test_seeds_are_counted_in_layers_times_tokens() -> None:
    for players, name, arguments in (("layers", "block_influence", ()), ("sublayers", "angular_distances", (2,))):
        game = game_of(players=players)
        getattr(game, name)(*arguments)
        assert game.evaluations.token_evals == L * W * T
        assert game.evaluations.layer_evals == 0


def test_masks_are_counted_in_layers_times_tokens() -> None:
    mask = np.array([[1, 1, 1, 1, 0, 1]], bool)
    game = game_of()
    game(mask)
    assert game.evaluations.token_evals == (L + 1) * W * T, "the full model and the one block that it does not share"
    halves = game_of(players="sublayers")
    halves(np.repeat(mask, 2, axis=1))
    assert halves.evaluations.token_evals == (L + 1) * W * T
    divergence = game_of(utility="kl")
    divergence(mask)
    assert divergence.evaluations.token_evals == (L + 1 + L) * W * T, "the teacher's pass as well"
