"""Repair of tiny models: what can be recovered is, what does not help is left out, and the model stays as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from adds_linearly import AddsLinearly
from short_texts import short_texts
from tiny_models import FAMILIES, save_tiny, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from layercoop_fast import ModelGame, fit_repair, prune, repaired_worth
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.repair import gap_by_gap, streams, strengths
from layercoop_fast.repair.ridge import NormalEquations
from layercoop_fast.repair.texts import _free_starts, default_texts, load_texts, own_texts
from layercoop_fast.texts.calibration import Calibration, begin_tokens, load_calibration, read_text, window_starts
from layercoop_fast.texts.domains import Domains
from layercoop_fast.texts.items import Item, fitting, load_items, tokenise

T = 16
TOKENS = 2 * 32 * T


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two short texts of different kinds."""
    return short_texts(tmp_path_factory.mktemp("texts"))


def game_on(
    model: Any, spec: str, *, players: str = "layers", block_path: str = "auto", utility: str = "ppl_ratio"
) -> ModelGame:
    checkpoint = Checkpoint(model, tiny_tokenizer(), "tiny")
    skeleton = Skeleton(model)
    text = load_calibration(spec, checkpoint.tokenizer, skeleton, windows=2, tokens=T)
    return ModelGame(checkpoint, text, skeleton=skeleton, players=players, block_path=block_path, utility=utility)


def mask_without(n: int, *removed: int) -> Any:
    mask = np.ones(n, dtype=np.bool_)
    mask[list(removed)] = False
    return mask


@pytest.fixture
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a repair helps a model of random weights is chance: take it as it comes."""
    monkeypatch.setattr(gap_by_gap, "_no_worse", lambda after, before: True)


@pytest.mark.usefixtures("everything_counts")
def test_a_removed_block_that_is_linear_is_recovered(specs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strengths, "STRENGTHS", (1e-9,))
    model = FAMILIES["llama"](n_layers=4)
    before = model.model.layers[1].mlp.down_proj
    stand_in = AddsLinearly(before, before.weight.shape)
    model.model.layers[2] = stand_in
    game = game_on(model, specs[0], block_path="hf")
    mask = mask_without(4, 2)
    repaired = fit_repair(game, mask, specs, tokens=TOKENS)
    assert repaired.kept, repaired.record
    wanted = before.weight.detach() + stand_in.map.detach()
    torch.testing.assert_close(repaired.tensors()["model.layers.1.mlp.down_proj.weight"], wanted, rtol=1e-3, atol=1e-3)
    worth, nll = repaired_worth(game, repaired)
    measured = game.evaluate(np.stack([np.ones(4, dtype=np.bool_), mask]))
    assert nll == pytest.approx(measured.nll[0], abs=1e-4)
    assert abs(measured.nll[1] - measured.nll[0]) > 100 * abs(nll - measured.nll[0])
    assert worth == pytest.approx(1.0, abs=1e-3)


class AddsGains(nn.Module):
    """A block that adds what the norm before it returned, each number by a factor of its own."""

    def __init__(self, before: nn.Module, width: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(width, generator=torch.Generator().manual_seed(1)))
        self.seen: list[Tensor] = []
        before.register_forward_hook(lambda _, __, returned: self.seen.__setitem__(slice(None), [returned]))

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        if self.seen[0].shape[0] != hidden.shape[0]:  # as above
            return hidden.clone()
        return hidden + self.seen[0] * self.factors


@pytest.mark.usefixtures("everything_counts")
def test_a_removed_block_that_is_gains_is_recovered(specs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strengths, "STRENGTHS", (1e-9,))
    model = FAMILIES["gemma2"](n_layers=4)
    before = model.model.layers[1].post_feedforward_layernorm
    stand_in = AddsGains(before, model.config.hidden_size)
    model.model.layers[2] = stand_in
    game = game_on(model, specs[0], block_path="hf")
    repaired = fit_repair(game, mask_without(4, 2), specs, tokens=TOKENS)
    gain = 1 + before.weight.detach()  # Gemma's own way to store it
    wanted = gain * (1 + stand_in.factors.detach()) - 1
    name = "model.layers.1.post_feedforward_layernorm.weight"
    torch.testing.assert_close(repaired.tensors(), {name: wanted}, rtol=1e-3, atol=1e-3)
    assert repaired_worth(game, repaired)[0] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.usefixtures("everything_counts")
@pytest.mark.parametrize(
    ("family", "players", "removed", "maps"),
    [
        ("llama", "layers", (1, 3), ["model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj"]),
        ("llama", "layers", (0, 1), ["model.layers.2.mlp.down_proj"]),
        ("llama", "sublayers", (3,), ["model.layers.1.self_attn.o_proj"]),
        ("gpt2", "layers", (2, 3), ["transformer.h.1.mlp.c_proj"]),
        ("opt", "layers", (1,), ["model.decoder.layers.0.fc2"]),
    ],
)
def test_what_is_folded_in_is_the_regression_written_out(
    specs: list[str], family: str, players: str, removed: tuple[int, ...], maps: list[str]
) -> None:
    """The first map against a regression over all tokens at once, from hooks on the two whole models."""
    model = FAMILIES[family](n_layers=4)
    game = game_on(model, specs[0], players=players)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask = mask_without(game.n_players, *removed)
    texts = load_texts(game, specs, TOKENS)
    repaired = fit_repair(game, mask, texts)
    assert [gap["map"] for gap in repaired.record["gaps"]] == maps
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    gap = gap_by_gap.find_gaps(game.masked.players.unit_masks(mask[None])[0])[0]
    site = repaired.patches[0].site
    ids = torch.cat([domain.fit for domain in texts.texts])
    context = game.masked.skeleton.context(ids)
    with torch.inference_mode():
        full = context.embedding
        for unit in range(gap.behind):
            full = game.masked.players.run(context, unit, full)
        seen: list[Tensor] = []
        handle = site.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        pruned = context.embedding
        for unit in range(gap.unit + 1):
            if unit not in gap.removed:
                seen.clear()
                pruned = game.masked.players.run(context, unit, pruned)
        handle.remove()
    full, pruned = full.double().flatten(0, 1), pruned.double().flatten(0, 1)
    inputs = seen[0].double().reshape(len(full), -1)
    weights = 1 / full.square().mean(-1)
    scale = float((weights[:, None] * inputs.square()).sum() / inputs.shape[1])
    penalty = torch.full((inputs.shape[1],), repaired.record["gaps"][0]["strength"] * scale, dtype=torch.float64)
    if site.bias is not None:
        inputs, penalty = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1), torch.cat([penalty, torch.zeros(1)])
    root = weights.sqrt()[:, None]
    rows = torch.cat([root * inputs, penalty.sqrt().diag()])
    wanted = torch.cat([root * (full - pruned), torch.zeros(len(penalty), full.shape[1])])
    change = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.t()
    width = site.weight.shape[1]
    with repaired.applied():
        torch.testing.assert_close(
            site.weight.double(), before_map(before, site)[0] + change[:, :width], rtol=1e-3, atol=1e-4
        )
        if site.bias is not None:
            torch.testing.assert_close(
                site.bias.double(), before_map(before, site)[1] + change[:, width], rtol=1e-3, atol=1e-4
            )


def before_map(before: dict[str, Tensor], site: Any) -> tuple[Tensor, Tensor | None]:
    weight = before[f"{site.name}.weight"].double()
    bias = before.get(f"{site.name}.bias")
    return (weight.t() if type(site.module).__name__ == "Conv1D" else weight), None if bias is None else bias.double()


@pytest.mark.usefixtures("everything_counts")
def test_streams_that_are_not_kept_give_the_same_repair(specs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CHUNK_TOKENS", 8 * T)
    game = game_on(FAMILIES["llama"](n_layers=5), specs[0])
    assert game.masked.units.path == "fast"
    mask = mask_without(5, 1, 3)
    kept = fit_repair(game, mask, specs, tokens=TOKENS)
    monkeypatch.setattr(gap_by_gap, "_STREAM_SHARE", 0.0)
    anew = fit_repair(game, mask, specs, tokens=TOKENS)
    for name, tensor in kept.tensors().items():
        assert torch.equal(tensor, anew.tensors()[name])


def test_a_repair_that_does_not_help_is_left_out_and_said_so(
    specs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def noise(sums: NormalEquations, strength: float) -> Tensor:
        return torch.randn(sums.cross.t().shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    monkeypatch.setattr(NormalEquations, "change", noise)
    text = tmp_path / "ab.txt"
    text.write_text("ab" * 1000, encoding="utf-8")
    game = game_on(FAMILIES["llama"](n_layers=4), str(text))
    mask = mask_without(4, 2)
    # A head that foretells this text well from what the mask leaves: whatever changes that, harms.
    with torch.no_grad():
        context = game.masked.skeleton.context(game.calibration.ids)
        hidden = context.embedding
        for layer in np.flatnonzero(mask):
            hidden = context.run(int(layer), hidden)
        hidden = game.masked.skeleton.model.model.norm(hidden.clone())
        weight = game.masked.skeleton.model.lm_head.weight.zero_()
        for word in game.calibration.ids.unique():
            weight[word] = hidden[:, :-1][game.calibration.ids[:, 1:] == word].mean(0)
    repaired = fit_repair(game, mask, [str(text)], tokens=TOKENS, compute="small")
    assert not repaired.kept
    assert not repaired.tensors()
    assert "no repair of any gap helps" in repaired.record["reason"]
    assert repaired_worth(game, repaired)[0] == game(mask)[0]


def test_strength_is_chosen_between_seen_and_unseen_kinds_of_text(
    specs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the mean of both, among strengths under which no domain loses by that mean, nor where it is seen."""
    before = [4.0, 4.0]
    seen = {1.0: [3.0, 3.0], 2.0: [3.5, 3.5], 3.0: [3.2, 4.1], 4.0: [3.8, 3.8]}
    unseen = {1.0: [5.2, 3.0], 2.0: [4.4, 3.2], 3.0: [3.0, 3.0], 4.0: [3.9, 3.9]}
    check = [[5.0, 5.0], [4.9, 5.0]]
    # Trials begin at the least strength, and stop behind the third, which must not be taken.
    means = iter([before, *list(seen.values())[:3], *check])
    monkeypatch.setattr(strengths, "STRENGTHS", tuple(seen))
    monkeypatch.setattr(gap_by_gap.GapByGap, "_means", lambda self, texts: next(means))
    monkeypatch.setattr(
        gap_by_gap.GapByGap, "_unseen", lambda self, total, sums, change, strength, site, patches: unseen[strength]
    )
    game = game_on(FAMILIES["llama"](n_layers=3), specs[0])
    repaired = fit_repair(game, mask_without(3, 2), specs, tokens=TOKENS)
    (gap,) = repaired.record["gaps"]
    assert gap["strength"] == 2.0
    assert [pair["after"] for pair in gap["nll"].values()] == seen[2.0]
    assert [pair["after"] for pair in gap["nll_unseen_domain"].values()] == unseen[2.0]
    assert repaired.kept


def test_a_repair_that_misleads_on_unseen_windows_is_left_out_as_a_whole(
    specs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    game = game_on(FAMILIES["llama"](n_layers=4), specs[0])
    monkeypatch.setattr(strengths, "STRENGTHS", (1.0,))
    verdicts = iter([True, True, False])
    monkeypatch.setattr(gap_by_gap, "_no_worse", lambda after, before: next(verdicts))
    repaired = fit_repair(game, mask_without(4, 2), specs, tokens=TOKENS)
    assert not repaired.kept
    assert "no choice has used" in repaired.record["reason"]


def test_windows_to_fit_to_share_no_token_with_those_of_the_search(specs: list[str]) -> None:
    game = game_on(FAMILIES["llama"](n_layers=2), specs[0])
    texts = load_texts(game, specs[:1], TOKENS)
    own = {tuple(window.tolist()) for window in game.calibration.ids}
    (domain,) = texts.texts
    groups = [{tuple(w.tolist()) for w in part} for part in (domain.fit, domain.choice, domain.check)]
    assert not own & set.union(*groups)
    assert sum(map(len, groups)) == len(set.union(*groups))
    starts = fit_starts(100, 10, [20, 45, 90], 10)
    assert starts == [0, 10, 30, 55, 65, 75]


def fit_starts(tokens: int, body: int, used: list[int], length: int) -> list[int]:
    return [int(start) for start in _free_starts(tokens, body, np.array(used), length)]


def test_a_text_too_short_is_left_out_and_said_so(specs: list[str], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words. " * 20, encoding="utf-8")
    game = game_on(FAMILIES["llama"](n_layers=4), specs[0])
    mask = mask_without(4, 2)
    repaired = fit_repair(game, mask, [str(short)], tokens=TOKENS)
    assert not repaired.kept
    assert "are needed to fit and to cross-validate" in repaired.record["reason"]
    with pytest.raises(RequestError, match="cannot be fitted"):
        fit_repair(game, mask, [str(short)], tokens=TOKENS, required=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "each given once"),
        ({"texts": ["builtin", "builtin"]}, "each given once"),
        ({"texts": ["builtin"], "tokens": 0}, "at least 1 token"),
        ({"texts": ["nothing.txt"]}, "cannot be read"),
        ({"compute": "large"}, "'large' is neither small nor full"),
    ],
)
def test_wrong_requests(specs: list[str], arguments: dict[str, Any], message: str) -> None:
    game = game_on(FAMILIES["llama"](n_layers=2), specs[0])
    with pytest.raises(RequestError, match=message):
        fit_repair(game, mask_without(2, 1), **arguments)
    with pytest.raises(RequestError, match="keeps nothing"):
        fit_repair(game, mask_without(2, 0, 1), specs)


@pytest.mark.parametrize("utility", ["ppl_ratio", "kl"])
def test_worths_of_a_game_do_not_change_by_a_repair(
    specs: list[str], utility: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gap_by_gap, "_no_worse", lambda after, before: True)
    game = game_on(FAMILIES["llama"](n_layers=4), specs[0], utility=utility)
    mask = mask_without(4, 1)
    repaired = fit_repair(game, mask, specs, tokens=TOKENS)
    worth, _ = repaired_worth(game, repaired)
    fresh = game_on(FAMILIES["llama"](n_layers=4), specs[0], utility=utility)
    assert game(mask)[0] == fresh(mask)[0]
    assert np.isfinite(worth)
    assert worth != game(mask)[0]


@pytest.mark.usefixtures("everything_counts")
@pytest.mark.parametrize(
    ("family", "players"), [("llama", "layers"), ("gpt2", "layers"), ("gemma2", "layers"), ("llama", "sublayers")]
)
def test_the_repaired_checkpoint_is_the_repaired_model(
    specs: list[str], family: str, players: str, tmp_path: Path
) -> None:
    source = str(save_tiny(tmp_path / "model", family, 4))
    done = prune(
        source,
        tmp_path / "out",
        remove=2,
        method="sleb",
        players=players,
        windows=2,
        tokens=T,
        repair=True,
        repair_text=specs,
        repair_tokens=TOKENS,
        measure_cost=False,
    )
    record = json.loads((tmp_path / "out" / "layercoop.json").read_text(encoding="utf-8"))
    assert record["repair"]["kept"]
    assert record["ppl"].keys() == {"full", "unrepaired", "pruned"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    game = ModelGame.from_pretrained(source, players=players, windows=2, tokens=T)
    with torch.inference_mode():
        logits = loaded(game.calibration.ids).logits
    nll = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), game.calibration.ids[:, 1:].flatten())
    assert float(nll) == pytest.approx(done.record["nll"]["pruned"], abs=2e-5)
    assert abs(done.record["nll"]["pruned"] - done.record["nll"]["unrepaired"]) > 2e-4


def test_the_text_that_is_measured_on_is_not_fitted_to(tmp_path: Path) -> None:
    source = str(save_tiny(tmp_path / "model", "llama", 1))
    opened = ModelGame.from_pretrained(source, windows=2, tokens=T)

    def game(calibration: Any) -> Any:
        return SimpleNamespace(calibration=calibration, masked=opened.masked, checkpoint=opened.checkpoint)

    def on(spec: str, domains: Domains | None = None) -> Any:
        return game(Calibration(torch.zeros(3, 4, dtype=torch.int64), spec, domains))

    kinds = ["builtin", "builtin-docstrings", "builtin-code", "self"]
    assert default_texts(on("novels.txt"), ["builtin"]) == ["novels.txt", *kinds[1:]]
    assert default_texts(on("novels.txt"), ["self"]) == ["novels.txt", *kinds[:3]]
    assert default_texts(on("builtin")) == default_texts(on("self")) == kinds
    assert default_texts(game(SimpleNamespace(spec="items.jsonl", windows_of={}))) == kinds
    several = Domains(np.array([0, 1, 0]), np.ones(2), ("novels.txt", "builtin-code"))
    assert default_texts(on("novels.txt + builtin-code", several)) == ["novels.txt", "builtin-code", *kinds[:2], "self"]
    assert own_texts(on("novels.txt + builtin-code", several)) == {"novels.txt": 2, "builtin-code": 1}


def test_a_model_that_writes_slowly_writes_no_text_to_fit_to(tmp_path: Path) -> None:
    source = str(save_tiny(tmp_path / "model", "llama", 2))
    game = ModelGame.from_pretrained(source, windows=2, tokens=T)
    assert default_texts(game)[-1] == "self"
    game.masked.skeleton.model.config.bos_token_id = game.masked.skeleton.model.config.eos_token_id = None
    game.checkpoint.tokenizer.bos_token = None
    assert default_texts(game) == ["builtin", "builtin-docstrings", "builtin-code"]
    streamed = ModelGame.from_pretrained(source, windows=2, tokens=T, offload=True)
    assert "self" not in default_texts(streamed)
    recurrent = str(save_tiny(tmp_path / "recurrent", "rwkv", 2))
    assert "self" not in default_texts(ModelGame.from_pretrained(recurrent, windows=2, tokens=T))


def test_without_repair_there_is_none(tmp_path: Path) -> None:
    source = str(save_tiny(tmp_path / "model", "llama", 3))
    options: dict[str, Any] = {"remove": 1, "method": "reverse", "windows": 2, "tokens": T, "measure_cost": False}
    done = prune(source, tmp_path / "out", repair=False, **options)
    assert done.record["repair"] is None
    with pytest.raises(RequestError, match="contradicts"):
        prune(source, tmp_path / "other", repair=False, repair_text=["builtin"], **options)


@pytest.mark.parametrize("share", [True, False])
def test_a_mask_searched_on_items_is_repaired_on_text(
    specs: list[str], share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast blocks of such a game are made for its own windows: trees, or sequences of another length."""
    monkeypatch.setattr("layercoop_fast.repair.texts.TOKENS", T)
    items = [Item(f"{n} + {n} =", (str(2 * n), "none", "no"), n % 3) for n in range(5)]

    def game(block_path: str) -> ModelGame:
        model = FAMILIES["llama"](n_layers=4)
        skeleton = Skeleton(model)
        choices = fitting(tokenise(items, tiny_tokenizer()), skeleton, share=share)
        checkpoint = Checkpoint(model, tiny_tokenizer(), "tiny")
        return ModelGame(checkpoint, choices, skeleton=skeleton, utility="margin", block_path=block_path)

    fast, slow = game("auto"), game("hf")
    assert fast.masked.units.path == "fast"
    mask = mask_without(4, 1)
    found, expected = (fit_repair(one, mask, specs, tokens=TOKENS, required=True) for one in (fast, slow))
    assert found.record["texts"] == specs
    assert found.record["gaps"] == expected.record["gaps"]
    # Nothing else is told of the items than that: without patches a repaired mask is worth what it was.
    plain = replace(found, patches=())
    assert repaired_worth(fast, plain)[0] == pytest.approx(float(fast(mask[None])[0]), rel=1e-5)


def test_what_says_nothing_is_left_as_it_is(specs: list[str]) -> None:
    """A block of zeros, as who removes a layer by zeroing it has: its map sees nothing that a fit could go by."""
    model = FAMILIES["llama"](n_layers=4)
    with torch.no_grad():
        for parameter in model.model.layers[1].parameters():
            parameter.zero_()
    game = game_on(model, specs[0])
    repaired = fit_repair(game, mask_without(4, 2), specs, tokens=TOKENS)
    assert not repaired.kept
    assert "are not all zero" in repaired.record["reason"]
    with pytest.raises(RequestError, match="cannot be fitted: a repair needs text"):
        fit_repair(game, mask_without(4, 2), specs, tokens=TOKENS, required=True)


def test_why_nothing_was_tried_is_said(specs: list[str]) -> None:
    """Experts have the last word in a block: there is no map to refit, which is another thing than one that harms."""
    game = game_on(FAMILIES["qwen2_moe"](n_layers=4), specs[0])
    record = fit_repair(game, mask_without(4, 2), specs, tokens=TOKENS).record
    assert "neither a plain linear map nor a norm" in record["reason"]
    assert fit_repair(game, mask_without(4), specs, tokens=TOKENS).record["reason"] == "nothing is removed"


@pytest.mark.parametrize(("utility", "length", "count"), [("accuracy", 40, 7), ("nll", 50, 6)])
def test_text_that_items_or_conversations_are_cut_from_is_not_fitted_to(utility: str, length: int, count: int) -> None:
    """Windows of a repair are looked up in the text again: none of them lies where the game is played."""
    model, tokenizer = FAMILIES["llama"](n_layers=2), tiny_tokenizer()
    checkpoint, skeleton = Checkpoint(model, tokenizer, "tiny"), Skeleton(model)
    text: Any
    if utility == "accuracy":
        text = load_items("builtin", tokenizer, skeleton, items=5, tokens=length, shots=2)
    else:
        text = load_calibration("builtin", tokenizer, skeleton, windows=count, tokens=40, chat=True)
    game = ModelGame(checkpoint, text, skeleton=skeleton, utility=utility)
    (domain,) = load_texts(game, ["builtin"], 400_000).texts  # all that is free
    stream = "".join(map(chr, tokenizer(read_text("builtin"), add_special_tokens=False)["input_ids"]))
    played = np.zeros(len(stream), dtype=bool)
    for at in window_starts(len(stream), length, count):
        played[at : at + length] = True
    start = len(begin_tokens(tokenizer))
    fitted = np.zeros(len(stream), dtype=bool)
    for row in torch.cat([domain.fit, domain.choice, domain.check])[:, start:]:
        body = "".join(map(chr, row.tolist()))
        at = stream.find(body)
        while stream.find(body, at + 1) >= 0 and played[at : at + len(body)].any():
            at = stream.find(body, at + 1)  # a passage that the text has twice
        fitted[at : at + len(body)] = True
    assert not (played & fitted).any()
    assert fitted.mean() > 0.5
