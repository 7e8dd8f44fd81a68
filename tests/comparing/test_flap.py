"""The width rival: its metric against plain NumPy, its counts against a model really cut, its losses against one."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny, tiny_model, tiny_tokenizer

from layercoop_fast.comparing.flap import WidthPruned, choose, find_projections, flap, group_scores, measure_fluctuation
from layercoop_fast.engine.loading import Checkpoint, open_checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.texts.calibration import Calibration

L, HIDDEN, INNER, HEAD = 3, 48, 80, 8
SHAPE = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": HEAD}
CHANNEL = 3 * HIDDEN
GROUP = HIDDEN * (2 * HEAD + 2 * HEAD + 2 * HEAD)  # two query heads, one key and value, two heads' columns


def game_of(family: str = "llama", **config) -> ModelGame:
    ids = torch.randint(3, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    shape = SHAPE if family == "llama" else {}
    model = tiny_model(family, n_layers=L, **{**shape, **config})
    return ModelGame(Checkpoint(model, tiny_tokenizer(), family), Calibration(ids, "t"))


def test_blocks_that_are_read_from_files(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_tiny(tmp_path / "model", n_layers=2)), offload=True)
    game = ModelGame(checkpoint, Calibration(torch.arange(3, 33).view(2, 15), "t"))
    with pytest.raises(RequestError, match="needs all weights in memory"):
        flap(game, 1000)


def inputs_of(game: ModelGame, layer: int, name: str) -> np.ndarray:
    """What a projection is handed for every calibration token, float64 [tokens, channels]."""
    seen: list[torch.Tensor] = []
    handle = (
        game.masked.skeleton.blocks[layer]
        .get_submodule(name)
        .register_forward_hook(lambda _, args, __: seen.append(args[0]))
    )
    with torch.inference_mode():
        game.checkpoint.model(input_ids=game.calibration.ids)
    handle.remove()
    return seen[0].double().reshape(-1, seen[0].shape[-1]).numpy()


def test_the_metric_is_the_formula() -> None:
    game = game_of()
    projections = find_projections(game)
    found = measure_fluctuation(game, projections)
    assert game.evaluations.token_evals == L * 60
    for number, (projection, fluctuation) in enumerate(zip(projections, found, strict=True)):
        name, width = ("mlp.down_proj", 1) if number % 2 else ("self_attn.o_proj", 2 * HEAD)
        x = inputs_of(game, number // 2, name)
        weight = projection.linear.weight.detach().double().numpy()
        scores = x.var(axis=0, ddof=1) * (weight**2).sum(axis=0)
        expected = [scores[first : first + width].mean() for first in range(0, len(scores), width)]
        np.testing.assert_allclose(fluctuation.mean, x.mean(axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(group_scores(projection, fluctuation), expected, rtol=1e-4)


def really_cut(game: ModelGame, rival: WidthPruned) -> torch.nn.Module:
    """A copy whose projections lack the rows and columns, and have the bias."""
    model = copy.deepcopy(game.checkpoint.model)
    for number, (kept, mean) in enumerate(zip(rival.kept, rival.means, strict=True)):
        if kept.all():
            continue
        block, keep = model.model.layers[number // 2], torch.from_numpy(kept)
        if number % 2:
            into, out = {"gate_proj": 1, "up_proj": 1}, block.mlp.down_proj
            owner, width = block.mlp, 1
        else:
            into, out = {"q_proj": 2 * HEAD, "k_proj": HEAD, "v_proj": HEAD}, block.self_attn.o_proj
            owner, width = block.self_attn, 2 * HEAD
        for name, rows in into.items():
            linear = getattr(owner, name)
            linear.weight = torch.nn.Parameter(linear.weight[keep.repeat_interleave(rows)])
            if linear.bias is not None:
                linear.bias = torch.nn.Parameter(linear.bias[keep.repeat_interleave(rows)])
        columns = keep.repeat_interleave(width)
        bias = out.weight.double() @ (torch.from_numpy(mean) * ~columns)
        bias = bias if out.bias is None else bias + out.bias
        out.weight, out.bias = torch.nn.Parameter(out.weight[:, columns]), torch.nn.Parameter(bias.float())
    return model


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("config", [{}, {"attention_bias": True, "mlp_bias": True}])
@pytest.mark.parametrize("n_params", [CHANNEL, 5_000, 20_000, 40_000])
def test_it_is_the_model_really_cut(n_params: int, config: dict) -> None:
    game = game_of(**config)
    full = game.evaluate(np.ones((1, L), bool)).window_nll[0]
    rival = flap(game, n_params)
    cut = really_cut(game, rival)
    assert rival.removed_params == count(game.checkpoint.model) - count(cut)
    assert n_params - CHANNEL - 2 < rival.removed_params <= n_params
    ids = game.calibration.ids
    with torch.inference_mode():
        expected = [float(cut(input_ids=row, labels=row).loss) for row in ids[:, None]]
    np.testing.assert_allclose(rival.window_nll(ids), expected, rtol=1e-5)
    np.testing.assert_allclose(game.evaluate(np.ones((1, L), bool)).window_nll[0], full, rtol=0)
    if n_params > CHANNEL:
        assert not np.allclose(rival.window_nll(ids), full, rtol=1e-4), "nothing was removed"


def test_the_lowest_go_and_what_no_longer_fits_is_passed_over() -> None:
    projections = find_projections(game_of())
    scores = [np.full(one.n_groups, 10.0 + number) for number, one in enumerate(projections)]
    scores[2][1], scores[3][[4, 7]] = -3.0, [-2.0, -4.0]
    kept, removed = choose(projections, scores, GROUP - HIDDEN + 2 * CHANNEL - HIDDEN)
    assert [np.flatnonzero(~one).tolist() for one in kept] == [[], [], [1], [4, 7], [], []]
    assert removed == GROUP - HIDDEN + 2 * CHANNEL - HIDDEN
    kept, removed = choose(projections, scores, 2 * CHANNEL)
    assert [np.flatnonzero(~one).tolist() for one in kept] == [[], [], [], [4, 7], [], []]
    assert removed == 2 * CHANNEL - HIDDEN


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RequestError, match="width pruning is for llama-shaped models, and block 0 is not one"):
        flap(game_of("gpt2"), 1000)
    with pytest.raises(RequestError, match="block 0 norms all its heads together"):
        flap(game_of("olmo2"), 1000)
    for n_params in (0, 10**9):
        with pytest.raises(RequestError, match=f"can go, not {n_params}"):
            flap(game_of(), n_params)
