"""The game on items: against the model on every full sequence by itself, and like any other game beyond that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, save_tiny, tiny_tokenizer

from layercoop_fast import choice_utility
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.store import Store
from layercoop_fast.game.worths import Worths
from layercoop_fast.search.base import get_method
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.texts.items import Item, Items, fitting, tokenise

L = 4


def items_of(count: int = 6, seed: int = 0) -> list[Item]:
    generator = np.random.default_rng(seed)

    def word(length: int) -> str:
        return "".join(chr(ord("a") + int(letter)) for letter in generator.integers(0, 26, length))

    return [
        Item(word(7), tuple(word(int(length)) for length in generator.integers(1, 6, 4)), int(generator.integers(4)))
        for _ in range(count)
    ]


def game_of(family: str = "llama", *, share: bool = True, dtype: torch.dtype = torch.float32, **options) -> ModelGame:
    model = FAMILIES[family](n_layers=L).to(dtype)
    skeleton = Skeleton(model)
    choices = fitting(tokenise(items_of(), tiny_tokenizer(), shots=2), skeleton, share=share)
    arguments = {"utility": "margin", **options}
    return ModelGame(Checkpoint(model, tiny_tokenizer(), family), choices, skeleton=skeleton, **arguments)


def random_masks(count: int = 8, n: int = L, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).random((count, n)) < 0.6
    return np.concatenate([drawn, np.ones((1, n), bool)])


def by_itself(game: ModelGame, mask: np.ndarray) -> np.ndarray:
    """NLL of every scored token, each sequence run alone through the kept blocks of the model. [N]"""
    assert isinstance(game.calibration, Items)
    found = []
    for group in game.calibration.groups:
        for sequence in group:
            ids = torch.tensor([sequence.tokens])
            context = game.masked.skeleton.context(ids)
            hidden = context.embedding
            for layer in np.flatnonzero(mask):
                hidden = context.run(int(layer), hidden)
            log_probs = context.logits(hidden)[0].double().log_softmax(-1)
            places = torch.arange(sequence.start, len(sequence.tokens))
            found.append(-log_probs[places - 1, ids[0, places]])
    return torch.cat(found).numpy()


@pytest.mark.parametrize("block_path", ["auto", "hf"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "opt", "phi3"])
def test_against_every_sequence_by_itself(family: str, block_path: str) -> None:
    game = game_of(family, block_path=block_path)
    assert game.masked.windows.positions is not None
    masks = random_masks(3)
    measured = game.evaluate(masks)
    for mask, row in zip(masks, measured.window_nll, strict=True):
        assert row == pytest.approx(by_itself(game, mask), rel=1e-4, abs=1e-5)
    assert game.fingerprints["numerics"]["context"] == "shared"


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_sliding_windows_that_hold_the_text(family: str) -> None:
    model = FAMILIES[family](n_layers=L, sliding_window=64)
    skeleton = Skeleton(model)
    choices = fitting(tokenise(items_of(), tiny_tokenizer(), shots=2), skeleton)
    game = ModelGame(Checkpoint(model, tiny_tokenizer(), family), choices, skeleton=skeleton, utility="accuracy")
    mask = random_masks(1)[0]
    assert game.evaluate(mask).window_nll[0] == pytest.approx(by_itself(game, mask), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", ["mamba", "gemma2"])
def test_models_that_cannot_share_say_so_and_run_whole(family: str) -> None:
    with pytest.raises(RequestError, match=r"cannot share contexts between options: .*share_context=False"):
        game_of(family)
    game = game_of(family, share=False)
    assert game.fingerprints["numerics"]["context"] == "whole"
    mask = random_masks(1)[0]
    assert game.evaluate(mask).window_nll[0] == pytest.approx(by_itself(game, mask), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_fast_path_sharing_changes_no_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = random_masks()
    shared, whole = game_of(dtype=dtype), game_of(dtype=dtype, share=False)
    for game in (shared, whole):
        assert (game.masked.units.path, game.masked.scorer.path) == ("fast", "fused")
    assert shared.masked.windows.ids.numel() < whole.masked.windows.ids.numel() / 4
    expected = whole.evaluate(masks).window_nll
    assert np.array_equal(shared.evaluate(masks).window_nll, expected)
    monkeypatch.setattr("layercoop_fast.texts.token_tree.pack_trees.__defaults__", (40,))
    narrow = game_of(dtype=dtype)
    assert narrow.masked.windows.n_windows > 1
    assert np.array_equal(narrow.evaluate(masks).window_nll, expected)


@pytest.mark.parametrize(("family", "players"), [("llama", "layers"), ("llama", "sublayers"), ("gpt2", "layers")])
def test_worths_do_not_depend_on_company_or_memory(family: str, players: str) -> None:
    game = game_of(family, players=players)
    masks = random_masks(n=game.n_players)
    together = game.evaluate(masks)
    state = game.masked.windows.state_bytes
    assert np.array_equal(
        game_of(family, players=players, memory=state).evaluate(masks).window_nll, together.window_nll
    )
    for mask, row in list(zip(masks, together.window_nll, strict=True))[:3]:
        assert np.array_equal(game_of(family, players=players).evaluate(mask).window_nll[0], row)


@pytest.mark.parametrize("share", [True, False])
def test_influence_is_that_of_tokens_not_of_padding(share: bool) -> None:
    """Of what is computed: shared, a text's token counts once; whole, once for every sequence that it is in."""
    game = game_of(share=share)
    assert isinstance(game.calibration, Items)
    assert not game.calibration.packs.filled.all() or share
    cosines: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for number, sequence in enumerate(sequence for group in game.calibration.groups for sequence in group):
        context = game.masked.skeleton.context(torch.tensor([sequence.tokens[:-1]]))
        states = [context.embedding]
        for layer in range(L):
            states.append(context.run(layer, states[-1].clone()))
        stream = torch.cat(states).double()
        turned = torch.nn.functional.cosine_similarity(stream[:-1], stream[1:], dim=-1)
        for at in range(turned.shape[1]):
            cosines[sequence.tokens[: at + 1] if share else (number, at)] = turned[:, at]
    expected = 1 - torch.stack(list(cosines.values())).mean(0).numpy()
    np.testing.assert_allclose(game.block_influence(), expected, rtol=1e-5)


def test_another_worth_is_one_of_items_too() -> None:
    game = game_of()
    masks = random_masks(2)
    assert np.array_equal(game.with_utility("accuracy")(masks), game_of(utility="accuracy")(masks))
    for name in ("ppl_ratio", "kl"):
        with pytest.raises(RequestError, match=f"the utility {name} is one of text, the calibration is items"):
            game.with_utility(name)
    with pytest.raises(RequestError, match=r"finercut goes by the divergence .* on items with options: try sleb"):
        get_method("finercut")(game, 1)


def test_streamed_blocks_change_no_bit(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", n_layers=L)
    path = tmp_path / "items.jsonl"
    fields = [{"context": one.context, "options": one.options, "label": one.label} for one in items_of()]
    path.write_text("\n".join(map(json.dumps, fields)))
    masks = random_masks(3)
    expected = ModelGame.from_pretrained(str(model), str(path), utility="margin").evaluate(masks)
    streamed = ModelGame.from_pretrained(str(model), str(path), utility="margin", offload=True)
    assert np.array_equal(streamed.evaluate(masks).window_nll, expected.window_nll)
    assert streamed.masked.weights_read > 0


def test_worths_from_a_store_and_a_file(tmp_path: Path) -> None:
    masks = random_masks()
    game = game_of(utility="accuracy", store=tmp_path / "a.store")
    measured = game.evaluate(masks)
    game.close()
    assert set(measured.worths) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    resumed = game_of(utility="accuracy", store=tmp_path / "a.store")
    assert np.array_equal(resumed.evaluate(masks).worths, measured.worths)
    assert resumed.evaluations.unique == 0
    resumed.close()
    with Store(tmp_path / "a.store") as store:
        kept = store.worths()
    at = [int(np.flatnonzero((kept.masks == mask).all(axis=1))[0]) for mask in masks]
    assert np.array_equal(kept.worths[at], measured.worths)
    assert np.array_equal(kept.nll[at], measured.nll)
    with pytest.raises(RequestError, match="belongs to another game; it differs in utility"):
        game_of(utility="margin", store=tmp_path / "a.store")
    measured.save(tmp_path / "w.npz")
    again = Worths.load(tmp_path / "w.npz")
    assert again.worth_stderr is not None
    assert measured.worth_stderr is not None
    assert np.array_equal(again.worth_stderr, measured.worth_stderr)


def test_standard_errors_are_over_items() -> None:
    game = game_of()
    measured = game.evaluate(random_masks())
    assert isinstance(game.calibration, Items)
    layout = game.calibration.layout
    margins, true_nll = [], []
    for row in measured.window_nll:
        items = list(zip(layout.nested(row), layout.labels, strict=True))
        margins.append([min(o.sum() for i, o in enumerate(item) if i != t) - item[t].sum() for item, t in items])
        true_nll.append([item[t].mean() for item, t in items])
    assert measured.worths == pytest.approx(np.mean(margins, axis=1))
    assert measured.worth_stderr == pytest.approx(np.std(margins, axis=1, ddof=1) / 2)
    assert measured.nll_stderr == pytest.approx(np.std(true_nll, axis=1, ddof=1) / 2)


def test_a_utility_of_ones_own_gets_every_token() -> None:
    seen = []

    def probability(log_probs: list[list[np.ndarray]], labels: np.ndarray) -> float:
        seen.append([[len(option) for option in item] for item in log_probs])
        return float(np.mean([np.exp(item[label].sum()) for item, label in zip(log_probs, labels, strict=True)]))

    game = game_of(utility=choice_utility("probability", probability))
    measured = game.evaluate(random_masks(2))
    assert ((measured.worths > 0) & (measured.worths < 1)).all()
    assert measured.worth_stderr is None
    assert seen[0] == [[len(option) + 1 for option in item.options] for item in items_of()[2:]]  # the blank before it
    assert measured.fingerprints["utility"] == "probability"


def test_items_have_no_divergence() -> None:
    """Said before anything is measured, by this process or by workers."""
    with pytest.raises(RequestError, match="is one of text, the calibration is items with options"):
        game_of().with_utility("kl")


def test_text_and_items_are_not_mixed_up() -> None:
    checkpoint = Checkpoint(FAMILIES["llama"](n_layers=1), tiny_tokenizer(), "llama")
    text = Calibration(torch.zeros(1, 8, dtype=torch.int64), "text")
    with pytest.raises(RequestError, match="the utility margin is one of items with options, the calibration is text"):
        ModelGame(checkpoint, text, utility="margin")
    with pytest.raises(RequestError, match="the utility kl is one of text, the calibration is items with options"):
        game_of(utility="kl")
    with pytest.raises(RequestError, match="score_every= belongs to text"):
        game_of(score_every=2)
