"""Several texts with weights, and windows in a chat template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.store import Store
from layercoop_fast.game.utility import get_utility
from layercoop_fast.texts.calibration import Calibration, load_calibration
from layercoop_fast.texts.domains import Domains
from layercoop_fast.texts.mixture import grown_from, load_texts, texts_of


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return Skeleton(tiny_model("llama", 4))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    for name, letters in (("a", "abcdefghij klmno"), ("b", "0123456789\n+-=()")):
        drawn = np.random.default_rng(ord(name)).choice(list(letters), 4000)
        (folder / f"{name}.txt").write_text("".join(drawn))
    return str(folder / "a.txt"), str(folder / "b.txt")


@pytest.mark.parametrize(
    ("text", "spec", "weight"),
    [
        ("novels.txt", "novels.txt", 1),
        ("novels.txt:2", "novels.txt", 2),
        ("a:b.txt:.5", "a:b.txt", 0.5),
        ("10:30.txt", "10:30.txt", 1),
        (r"C:\texts\novels.txt", r"C:\texts\novels.txt", 1),
        (r"C:\texts\novels.txt:1e-1", r"C:\texts\novels.txt", 0.1),
        ("hf:wikitext/wikitext-2-v1", "hf:wikitext/wikitext-2-v1", 1),
        ("hf:wikitext/train[:2]", "hf:wikitext/train[:2]", 1),
        ("hf:wikitext:3", "hf:wikitext", 3),
        ("hf:2024", "hf:2024", 1),
        ("self:4", "self", 4),
    ],
)
def test_a_weight_is_a_number_after_the_last_colon(text: str, spec: str, weight: float) -> None:
    assert texts_of(text) == texts_of([text]) == [(spec, weight)]


def test_pairs_are_taken_as_they_are() -> None:
    assert texts_of(["a.txt:3", ("b.txt:4", 2)]) == [("a.txt", 3.0), ("b.txt:4", 2.0)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no calibration text"),
        ("a.txt:0", "weight of a.txt is 0: weights are numbers above 0"),
        (["a.txt:-1"], "weight of a.txt is -1"),
        ([("a.txt", float("nan"))], "weight of a.txt is nan"),
        (["a.txt:1e999"], "weight of a.txt is inf"),
        (["a.txt", "b.txt", "a.txt:2"], "a.txt is given twice"),
    ],
)
def test_texts_that_cannot_be_meant(given, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        texts_of(given)


def test_windows_take_turns(skeleton: Skeleton, texts: tuple[str, str]) -> None:
    alone = [load_calibration(text, tiny_tokenizer(), skeleton, windows=3, tokens=20) for text in texts]
    both = load_texts([texts[0], (texts[1], 3)], tiny_tokenizer(), skeleton, windows=3, tokens=20)
    for turn in range(3):
        for text in range(2):
            assert torch.equal(both.ids[2 * turn + text], alone[text].ids[turn])
    assert both.domains is not None
    assert both.domains.of_window.tolist() == [0, 1] * 3
    assert both.description == {
        "spec": f"{texts[0]} + {texts[1]}",
        "windows": 6,
        "tokens": 20,
        "domains": [
            {"spec": texts[0], "weight": 1.0, "windows": 3},
            {"spec": texts[1], "weight": 3.0, "windows": 3},
        ],
    }


def test_one_text_is_what_it_was(skeleton: Skeleton, texts: tuple[str, str]) -> None:
    """Its digest is what stores know it by, and a weight changes nothing in a mean over one."""
    plain = load_texts(texts[0], tiny_tokenizer(), skeleton, windows=3, tokens=20)
    heavy = load_texts(f"{texts[0]}:2", tiny_tokenizer(), skeleton, windows=3, tokens=20)
    assert plain.domains is heavy.domains is None
    assert plain.fingerprint == heavy.fingerprint
    assert Calibration(torch.arange(6).view(2, 3), "t").fingerprint == (
        "9e84b51c449b81c3ef3017a0137b130578a496eab1a16787a6dc6a1ec36dfcc5"
    )
    assert plain.description == {"spec": texts[0], "windows": 3, "tokens": 20}


def test_weights_and_texts_are_in_the_fingerprint(skeleton: Skeleton, texts: tuple[str, str]) -> None:
    def fingerprint(*weights: float) -> object:
        pairs = list(zip(texts, weights, strict=True))
        return load_texts(pairs, tiny_tokenizer(), skeleton, windows=2, tokens=20).fingerprint

    assert fingerprint(1, 2) == fingerprint(1, 2)
    assert fingerprint(1, 2) != fingerprint(2, 1)


@pytest.mark.parametrize("windows", [1, 2, 5, 10])
def test_growing_keeps_every_window(skeleton: Skeleton, texts: tuple[str, str], windows: int) -> None:
    def cut(count: int) -> Calibration:
        return load_texts(list(texts), tiny_tokenizer(), skeleton, windows=count, tokens=20)

    wanted = max(2, 2 * windows - 1)
    old, finer = cut(windows), cut(wanted)
    grown, new = grown_from(old, finer)
    assert torch.equal(grown.ids[: len(old.ids)], old.ids)
    assert torch.equal(grown.ids[len(old.ids) :], new.ids)
    assert grown.domains is not None
    for text in range(2):
        rows = {tuple(row) for row in grown.ids[grown.domains.of_window == text].tolist()}
        assert rows == {tuple(row) for row in finer.ids[text::2].tolist()}
    assert len(grown.domains.of_window) == len(grown.ids) == 2 * wanted


def chat_of(tokens: int, windows: int, text: str, **options) -> Calibration:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = options.pop("template", CHAT_TEMPLATE)
    skeleton = Skeleton(tiny_model("llama", 1))
    return load_calibration(text, tokenizer, skeleton, windows=windows, tokens=tokens, chat=True, **options)


def test_chat_windows_are_question_and_answer(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("".join(chr(97 + i % 26) for i in range(400)))
    found = chat_of(40, 4, str(path))
    text = path.read_text()
    assert found.description["chat"] is True
    for row, first in zip(found.ids, (0, 116, 233, 350), strict=True):  # stretches of 50 spread over 400
        piece = text[first : first + 50]
        assert tiny_tokenizer().decode(row) == f"<user>{piece[:10]}\n<assistant>{piece[10:]}"[:40]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (40, {"template": None}, "no chat template: leave --chat out"),
        (20, {}, "takes 21 tokens of a window of 20"),
        (40, {"template": "{{ raise_exception('no users here') }}"}, "takes no question and answer: no users here"),
    ],
)
def test_chat_that_cannot_be(texts: tuple[str, str], tokens: int, options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        chat_of(tokens, 2, texts[0], **options)
    with pytest.raises(RequestError, match="'self' is none"):
        chat_of(40, 2, "self")


def test_a_game_on_two_texts(skeleton: Skeleton, texts: tuple[str, str], tmp_path: Path) -> None:
    """Means by hand, from games on either text alone; a store holds the game and its worths."""
    checkpoint = Checkpoint(skeleton.model, tiny_tokenizer(), "llama")
    masks = np.random.default_rng(0).random((6, 4)) < 0.6

    def game(given: object, name: str, **options) -> ModelGame:
        text = load_texts(given, tiny_tokenizer(), skeleton, windows=3, tokens=20)
        return ModelGame(checkpoint, text, skeleton=skeleton, utility=name, **options)

    full = np.ones((1, 4), bool)
    each = [game(text, "nll").evaluate(np.concatenate([full, masks])).nll for text in texts]
    rises = [nll[1:] - nll[0] for nll in each]
    store = tmp_path / "g.store"
    both = game([texts[0], (texts[1], 3)], "ppl_ratio", store=store)
    measured = both.evaluate(masks)
    np.testing.assert_allclose(measured.worths, np.exp(-(rises[0] + 3 * rises[1]) / 4), rtol=1e-5)
    np.testing.assert_allclose(measured.nll, (each[0][1:] + 3 * each[1][1:]) / 4, rtol=1e-6)
    worst = both.with_utility("ppl_ratio:worst")
    np.testing.assert_allclose(worst(masks), np.exp(-np.maximum(*rises)), rtol=1e-5)
    assert worst.with_utility("nll").utility.name == "nll:worst"
    assert worst.with_utility("nll:mean").utility is get_utility("nll")
    part = both.part(1, 4)
    assert part.calibration.domains is not None
    assert part.calibration.domains.of_window.tolist() == [1, 0, 1]
    staged = both.staged([2, 6])
    few = np.array([measured.window_nll[:, i] - both.window_scores(full).nll[0, i] for i in range(2)])
    np.testing.assert_allclose(staged.worths(masks, 2), np.exp(-(few[0] + 3 * few[1]) / 4), rtol=1e-5)
    both.close()
    with Store(store) as opened:
        keys = {one.fingerprints["utility"]: one.key for one in opened.games() if len(one.window_tokens) == 6}
        kept = opened.worths(keys["ppl_ratio"])
    known = {mask.tobytes(): worth for mask, worth in zip(kept.masks, kept.worths, strict=True)}
    assert [known[mask.tobytes()] for mask in masks] == measured.worths.tolist()
    assert isinstance(Domains.of(kept.fingerprints["calibration"]), Domains)
