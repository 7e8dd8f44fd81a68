"""Compensations of other methods against their formulas on transformers' own streams, and models that have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from full_streams import blocks_of, full_run
from short_texts import short_texts
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor

from layercoop_fast import ModelGame, RequestError
from layercoop_fast.comparing.compensations import Run, check_fits, compensate, removed_runs
from layercoop_fast.comparing.hadamard import hadamard
from layercoop_fast.comparing.request import COMPENSATIONS
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.masked.scoring import token_nll
from layercoop_fast.repair import streams
from layercoop_fast.repair.fit import measured_with
from layercoop_fast.repair.texts import RepairTexts, load_texts
from layercoop_fast.texts.calibration import Calibration

L, T = 7, 16
LAST_MAP = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj"}
# Two runs, of one and of two blocks.
MASK = np.array([True, True, False, True, False, False, True])
RUNS = (Run(2, 3), Run(4, 6))


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return short_texts(tmp_path_factory.mktemp("texts"))


def game_on(model: Any) -> ModelGame:
    text = Calibration(torch.arange(3, 3 + 4 * T).reshape(4, T), "elsewhere")
    return ModelGame(Checkpoint(model, tiny_tokenizer(), "tiny"), text)


def fitted(family: str, specs: list[str]) -> tuple[Any, ModelGame, RepairTexts, Tensor]:
    """A model, a game on it, texts, and all their windows."""
    model = tiny_model(family, L)
    game = game_on(model)
    texts = load_texts(game, specs, len(specs) * 12 * T)
    return model, game, texts, torch.cat([torch.cat([text.fit, text.choice, text.check]) for text in texts.texts])


def test_runs_of_removed_units() -> None:
    assert removed_runs(MASK) == list(RUNS)
    assert removed_runs(np.array([False, True, False])) == [Run(0, 1), Run(2, 3)]
    assert removed_runs(np.array([True, True])) == []


@pytest.mark.parametrize("width", [1, 2, 4, 12, 20, 28, 36, 64, 72, 96, 576])
def test_hadamard_matrices(width: int) -> None:
    found = hadamard(width)
    assert found is not None
    torch.testing.assert_close(found @ found.t(), torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.abs(), torch.full_like(found, width**-0.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("width", [3, 6, 92, 890])
def test_widths_without_a_hadamard_matrix(width: int) -> None:
    assert hadamard(width) is None


def test_a_model_without_a_hadamard_matrix_is_refused() -> None:
    game = game_on(tiny_model("llama", 2, hidden_size=92, num_attention_heads=2, num_key_value_heads=1))
    check_fits(["ghosted"], game)
    with pytest.raises(RequestError, match="none is known here for its 92 numbers: leave it out"):
        check_fits(["ghosted", "linear_patch"], game)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_fits_are_the_formulas(family: str, specs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CHUNK_TOKENS", 5 * T)
    model, game, texts, ids = fitted(family, specs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = {name: compensate(name, game, MASK, texts) for name in COMPENSATIONS}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for run, one in zip(RUNS, found["replaceme"].patches, strict=True):
        states, _, m = full_run(model, ids, run.first - 1, LAST_MAP[family])
        x, y = states[run.first], states[run.behind]
        assert x.shape[0] == ids.numel()
        # Row by row: y ≈ x M, so the map on columns is its transpose.
        ghosted = torch.linalg.lstsq(x, y).solution.t()
        torch.testing.assert_close(found["ghosted"].maps[run.first - 1].double(), ghosted, rtol=0, atol=1e-3)
        rotation = hadamard(x.shape[1])
        assert rotation is not None
        sizes = [(stream @ rotation).reshape(len(ids), T, -1).abs().mean(1) for stream in (x, y)]
        patch = rotation @ torch.diag((sizes[1] / sizes[0]).mean(0)) @ rotation.t()
        torch.testing.assert_close(found["linear_patch"].maps[run.first - 1].double(), patch, rtol=0, atol=1e-5)
        factor = (y.norm(dim=1) / x.norm(dim=1)).mean() * torch.eye(x.shape[1])
        torch.testing.assert_close(found["prune_comp"].maps[run.first - 1].double(), factor.double(), rtol=1e-5, atol=0)
        times = torch.linalg.lstsq(m, y - x + m).solution.t()
        (name, weight), *bias = one.values.items()
        old = before[name].double()
        wanted = old @ times.t() if family == "gpt2" else times @ old  # Conv1D keeps the transpose
        torch.testing.assert_close(weight.double(), wanted, rtol=0, atol=2e-3)
        for name, tensor in bias:
            torch.testing.assert_close(tensor.double(), times @ before[name].double(), rtol=0, atol=2e-3)
    assert {name for name, one in found.items() if one.plain} == {"replaceme", "prune_comp"}


def removed(model: Any, mask: np.ndarray) -> None:
    """Take the blocks that a mask removes out of a transformers model."""
    blocks = blocks_of(model)
    for block in [block for block, stays in zip(blocks, mask, strict=True) if not stays]:
        del blocks[[each is block for each in blocks].index(True)]


@torch.no_grad()
def nll_of(model: Any, ids: Tensor) -> np.ndarray:
    return np.asarray(token_nll(model(ids, use_cache=False).logits, ids).double().mean(1).numpy())


@pytest.mark.parametrize("name", COMPENSATIONS)
def test_models_with_a_compensation(name: str, specs: list[str]) -> None:
    """Against transformers' model without the blocks, with the new weights, and hooks that apply the matrices."""
    model, game, texts, _ = fitted("llama", specs)
    # Blocks of random weights hardly change the stream; theirs do.
    for block in blocks_of(model):
        block.mlp.down_proj.weight.data *= 40
    found = compensate(name, game, MASK, texts)
    ids = game.calibration.ids
    plain = measured_with(game, MASK, ())[2]
    measured = measured_with(game, MASK, found.patches, found.maps)[2]
    kept = {unit: block for unit, block in enumerate(blocks_of(model)) if MASK[unit]}
    removed(model, MASK)
    np.testing.assert_allclose(plain, nll_of(model, ids), rtol=2e-5)
    assert np.abs(measured - plain).max() > 1e-3
    for unit, matrix in found.maps.items():
        kept[unit].register_forward_hook(
            lambda _, __, out, matrix=matrix: (
                (out[0] @ matrix.t(), *out[1:]) if isinstance(out, tuple) else out @ matrix.t()
            )
        )
    weights = dict(model.named_parameters())
    names = {f"model.layers.{unit}.": f"model.layers.{place}." for place, unit in enumerate(kept)}
    for one in found.patches:
        for path, tensor in one.values.items():
            prefix = next(prefix for prefix in names if path.startswith(prefix))
            weights[path.replace(prefix, names[prefix])].data.copy_(tensor)
    np.testing.assert_allclose(measured, nll_of(model, ids), rtol=2e-5)


def test_the_factor_of_prune_comp_folds_into_weights(specs: list[str]) -> None:
    """The record calls it plain: later output maps divided by it give the same predictions, without a hook."""
    model, game, texts, _ = fitted("llama", specs)
    for block in blocks_of(model):
        block.mlp.down_proj.weight.data *= 40
    found = compensate("prune_comp", game, MASK, texts)
    measured = measured_with(game, MASK, found.patches, found.maps)[2]
    factor = 1.0
    for unit, block in enumerate(blocks_of(model)):
        block.mlp.down_proj.weight.data /= factor
        block.self_attn.o_proj.weight.data /= factor
        factor *= float(found.maps[unit][0, 0]) if unit in found.maps else 1.0
    assert abs(factor - 1) > 0.1
    removed(model, MASK)
    np.testing.assert_allclose(measured, nll_of(model, game.calibration.ids), rtol=1e-4)


def test_a_run_at_the_beginning(specs: list[str]) -> None:
    """Matrices act on the embedding; replaceme has no map to change there, and says so."""
    model, game, texts, ids = fitted("llama", specs)
    mask = np.array([False, True, True, False, True, True, True])
    states, _, _ = full_run(model, ids, 0, LAST_MAP["llama"])
    ghosted = compensate("ghosted", game, mask, texts)
    assert sorted(ghosted.maps) == [-1, 2]
    wanted = torch.linalg.lstsq(states[0], states[1]).solution.t()
    torch.testing.assert_close(ghosted.maps[-1].double(), wanted, rtol=0, atol=1e-3)
    found = compensate("replaceme", game, mask, texts)
    assert len(found.patches) == 1
    assert found.left_out == ("the run from 0 on has no linear map before it whose output is added to the stream",)
    matrix = ghosted.maps[-1]
    plain, measured = (measured_with(game, mask, (), maps)[2] for maps in ({}, {-1: matrix}))
    assert np.abs(measured - plain).max() > 1e-4
    removed(model, mask)
    model.model.embed_tokens.register_forward_hook(lambda _, __, out: out @ matrix.t())
    np.testing.assert_allclose(measured, nll_of(model, game.calibration.ids), rtol=2e-5)


@pytest.mark.parametrize("family", ["mixtral", "gemma2"])
def test_what_has_no_map_before_a_run(family: str, specs: list[str]) -> None:
    """Several experts, or a norm behind the last map: replaceme changes nothing there; the others need no map."""
    _, game, texts, _ = fitted(family, specs)
    found = compensate("replaceme", game, MASK, texts)
    assert (found.patches, len(found.left_out)) == ((), 2)
    assert sorted(compensate("prune_comp", game, MASK, texts).maps) == [1, 3]
