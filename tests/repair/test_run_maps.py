"""Maps of every run against the regression written out on transformers' own modules, and masks measured with them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from full_streams import full_run
from short_texts import short_texts
from tiny_models import FAMILIES, tiny_model, tiny_tokenizer

from layercoop_fast import ModelGame, RequestError, fit_repair
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.masked.windows import Windows
from layercoop_fast.repair import gap_by_gap, streams
from layercoop_fast.repair.held_out import HeldOut
from layercoop_fast.repair.patches import applied
from layercoop_fast.repair.repaired_model import repaired_game
from layercoop_fast.repair.run_maps import Kept, RunMaps, fit_run_maps, longest_run
from layercoop_fast.repair.texts import RepairTexts, load_texts
from layercoop_fast.texts.calibration import Calibration

L, T = 6, 16
LAST_MAP = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "gemma2": "post_feedforward_layernorm"}


def game_on(model: Any, **keywords: Any) -> ModelGame:
    text = Calibration(torch.arange(3, 3 + 4 * T).reshape(4, T), "elsewhere")
    return ModelGame(Checkpoint(model, tiny_tokenizer(), "tiny"), text, **keywords)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two short texts of different kinds."""
    return short_texts(tmp_path_factory.mktemp("texts"))


def fitted(game: ModelGame, specs: Sequence[str], longest: int = 3) -> tuple[RunMaps, RepairTexts]:
    texts = load_texts(game, specs, len(specs) * 8 * T)
    return fit_run_maps(game, texts, longest, strength=0.1), texts


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_maps_are_the_regressions_written_out(family: str, specs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CHUNK_TOKENS", 3 * T)
    model = FAMILIES[family](n_layers=L)
    game = game_on(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps, texts = fitted(game, specs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sorted(maps.patches) == [(unit, run) for unit in range(L) for run in range(1, min(3, L - 1 - unit) + 1)]
    ids = torch.cat([text.fit for text in texts.texts])
    assert maps.tokens == ids.numel() * (2 * L - 1)  # each unit once, and all but the last once more, watched
    for unit, run in ((0, 3), (2, 1), (4, 1)):
        states, handed, returned = full_run(model, ids, unit, LAST_MAP[family])
        added, behind = states[unit + 1 + run] - states[unit + 1], states[unit + 1]
        root = behind.square().mean(-1).rsqrt()[:, None]
        one = maps.patches[Kept(unit, run)]
        name, *bias = one.values
        weight, old = one.values[name].double(), before[name].double()
        if family == "gemma2":
            slopes = (root**2 * returned * added).sum(0) / (1.1 * (root**2 * returned**2).sum(0))
            torch.testing.assert_close(weight, old + slopes * (1 + old), rtol=1e-3, atol=1e-4)
            continue
        inputs, penalty = root * handed, 0.1 * (root * handed).square().sum(0).mean()
        penalties = penalty.expand(inputs.shape[1])
        if bias:
            inputs, penalties = torch.cat([inputs, root], 1), torch.cat([penalties, torch.zeros(1)])
        rows = torch.cat([inputs, penalties.sqrt().diag()])
        wanted = torch.cat([root * added, torch.zeros(len(penalties), added.shape[1])])
        change = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution
        if bias:
            new = one.values[bias[0]].double()
            torch.testing.assert_close(new, before[bias[0]] + change[-1], rtol=1e-3, atol=1e-4)
            change = change[:-1]
        change = change if family == "gpt2" else change.t()
        torch.testing.assert_close(weight, old + change, rtol=1e-3, atol=1e-4)


def every_mask(n: int) -> Any:
    masks = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return masks[masks.any(axis=1)].astype(bool)


@pytest.mark.parametrize("path", ["auto", "hf"])
def test_a_mask_is_worth_what_the_model_with_its_maps_is(path: str, specs: list[str]) -> None:
    model = FAMILIES["llama"](n_layers=L)
    game = game_on(model, block_path=path, utility="kl")
    maps, _ = fitted(game, specs, longest=2)
    before = copy.deepcopy(model.state_dict())
    repaired = repaired_game(game, maps)
    masks = every_mask(L)
    scores = repaired.window_scores(masks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for mask, nll, kl in zip(masks, scores.nll, scores.kl, strict=True):
        kept = maps.kept(mask)
        fresh = game.view()
        fresh.window_scores(np.ones((1, L), dtype=np.bool_))  # compares with the full model as it is
        with applied([maps.patches[one] for one in kept if one.run]):
            alone = fresh.window_scores(mask[None])
        np.testing.assert_array_equal(nll, alone.nll[0])
        np.testing.assert_array_equal(kl, alone.kl[0])
    changed = [not np.array_equal(a, b) for a, b in zip(scores.nll, game.window_scores(masks).nll, strict=True)]
    assert changed == [any(one.run for one in maps.kept(mask)) for mask in masks]


def test_which_map_stands_in_for_which_run(specs: list[str]) -> None:
    maps, _ = fitted(game_on(FAMILIES["llama"](n_layers=L)), specs, longest=2)

    def kept(*units: int) -> list[tuple[int, int]]:
        return [tuple(one) for one in maps.kept(np.isin(np.arange(L), units))]

    assert kept(0, 1, 2, 3, 4, 5) == [(unit, 0) for unit in range(L)]
    assert kept(0, 2, 5) == [(0, 1), (2, 2), (5, 0)]
    assert kept(2, 3) == [(2, 0), (3, 2)]  # before the first nothing is made up for; a run at the end is one
    assert kept(0, 5) == [(0, 2), (5, 0)]  # the longest run that has a map


def test_a_repaired_game_shares_what_masks_have_in_common_up_to_a_gap(specs: list[str]) -> None:
    game = game_on(FAMILIES["llama"](n_layers=L))
    maps, _ = fitted(game, specs)
    repaired = repaired_game(game, maps)
    masks = np.ones((2, L), dtype=np.bool_)
    masks[0, 3], masks[1, 3:5] = False, False
    repaired.window_scores(masks)
    # 0, 1; then 2 with a map for one block and 2 with a map for two; 4 and 5; 5. The full model's other four are new.
    assert repaired.masked.plans(masks)[0].plan == 7
    assert repaired.evaluations.layer_evals == 7 + 4
    assert repaired.fingerprints["repair"] == maps.record
    assert "repair" not in game.fingerprints


def test_more_maps_than_a_plan_holds_are_measured_in_parts(specs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    game = game_on(FAMILIES["llama"](n_layers=L))
    maps, _ = fitted(game, specs)
    masks = every_mask(L)
    whole = repaired_game(game, maps)
    monkeypatch.setattr("layercoop_fast.repair.repaired_model.MOST_PLAYERS", 8)
    parts = repaired_game(game, maps)
    assert len(parts.masked.plans(masks)) > 4
    np.testing.assert_array_equal(whole(masks), parts(masks))


def test_a_gap_is_judged_with_the_maps_of_those_behind_it(specs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_by_gap, "_no_worse", lambda after, before: True)
    game = game_on(FAMILIES["llama"](n_layers=L))
    maps, texts = fitted(game, specs)
    mask = ~np.isin(np.arange(L), [1, 3, 4])
    kept = [0, 2, 5]
    found = fit_repair(game, mask, texts, compute="small", maps=maps).record["gaps"]
    without = fit_repair(game, mask, texts, compute="small").record["gaps"]
    assert [gap["into"] for gap in found] == [0, 2]
    for text in texts.texts:
        heldout = HeldOut(game, Windows(game.masked.skeleton, text.choice))
        plain = heldout.nll(kept)
        with applied([maps.patches[Kept(2, 2)]]):
            expected = heldout.nll(kept)
        assert found[0]["nll"][text.spec]["before"] == pytest.approx(expected, abs=1e-6)
        assert without[0]["nll"][text.spec]["before"] == pytest.approx(plain, abs=1e-6)
        assert abs(expected - plain) > 1e-5


def test_halves_and_stages_play_too(specs: list[str]) -> None:
    game = game_on(FAMILIES["llama"](n_layers=3), players="sublayers")
    maps, _ = fitted(game, specs)
    repaired = repaired_game(game, maps)
    masks = every_mask(6)[::5]
    whole = repaired.window_scores(masks)
    few = repaired_game(game, maps).staged([1, 4]).window_scores(masks, 1)
    np.testing.assert_allclose(few.nll[:, 0], whole.nll[:, 0], rtol=1e-6)
    assert {"self_attn.o_proj", "mlp.down_proj"} == {one.site.name.split(".", 3)[3] for one in maps.patches.values()}


def test_a_model_without_sites_is_refused(specs: list[str]) -> None:
    game = game_on(tiny_model("granite", 2))
    with pytest.raises(RequestError, match=r"no run of removed layers can be repaired: .*\(GraniteDecoderLayer\)"):
        fitted(game, specs)
    with pytest.raises(RequestError, match="neither a plain linear map nor a norm"):
        longest_run(game.masked, 1)


def test_runs_are_as_long_as_memory_allows() -> None:
    game = game_on(FAMILIES["llama"](n_layers=L))
    one = L * game.checkpoint.model.model.layers[0].mlp.down_proj.weight.nbytes
    assert longest_run(game.masked, 9) == L - 1
    game.masked.memory = 2 * one + one // 2
    assert (longest_run(game.masked, 9), longest_run(game.masked, 1)) == (2, 1)
    game.masked.memory = one - 1
    with pytest.raises(RequestError, match=f"single removed layers take {one:,} bytes"):
        longest_run(game.masked, 1)
