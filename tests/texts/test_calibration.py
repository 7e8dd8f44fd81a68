"""From a SPEC to equal token windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import BOS, EOS, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.texts.calibration import cut_windows, load_calibration, read_text

TEXT = "".join(chr(97 + i % 26) for i in range(1000))


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return Skeleton(tiny_model("llama", 2))


def bos_adding_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def test_windows_are_spread_evenly_without_overlap() -> None:
    ids = cut_windows(TEXT, tiny_tokenizer(), 4, 100)
    stream = tiny_tokenizer()(TEXT, verbose=False)["input_ids"]
    assert ids.shape == (4, 100)
    assert ids.dtype == torch.int64
    assert [row.tolist() for row in ids] == [stream[first : first + 100] for first in (0, 300, 600, 900)]


def test_exactly_enough_text_is_enough() -> None:
    ids = cut_windows(TEXT, tiny_tokenizer(), 10, 100)
    assert ids.flatten().tolist() == tiny_tokenizer()(TEXT, verbose=False)["input_ids"]


def test_a_begin_token_starts_every_window_where_the_tokenizer_adds_one() -> None:
    ids = cut_windows(TEXT, bos_adding_tokenizer(), 3, 50)
    assert ids[:, 0].tolist() == [BOS] * 3
    assert BOS not in ids[:, 1:]
    assert ids.shape == (3, 50)


def test_a_text_too_short_says_what_it_has_and_what_is_needed() -> None:
    with pytest.raises(RequestError, match="has 1000 tokens; 11 windows of 100 need 1100"):
        cut_windows(TEXT, tiny_tokenizer(), 11, 100)


def test_jsonl_takes_the_text_fields(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "n": 1}\n', encoding="utf-8")
    assert read_text(str(path)) == "one\n\ntwo"
    path.write_text('{"text": "one"}\n{"body": "two"}\n')
    with pytest.raises(RequestError, match=r'items.jsonl line 2 is not a JSON object with a "text" field'):
        read_text(str(path))
    path.write_text('{"text": "half \\ud800 of one"}\n')
    with pytest.raises(RequestError, match=r"line 1: it has half of a character, '\\ud800'"):
        read_text(str(path))
    path.write_text('{"text": "one\u2028line\x85of"}\n{"text": "two"}\n', encoding="utf-8")
    assert read_text(str(path)) == "one\u2028line\x85of\n\ntwo"
    path.write_text("[" * 100_000)
    with pytest.raises(RequestError, match="line 1 is not a JSON object"):
        read_text(str(path))
    path.write_text('{"text": 3}\n')
    with pytest.raises(RequestError, match=r"line 1.*int, not a string"):
        read_text(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\t\n", "holds no text"),
        ("latin.txt", "caf\xe9".encode("latin-1"), r"not UTF-8 text \(byte 3\)"),
        ("none.txt", None, "cannot be read: No such file"),
        ("text.pdf", b"x", "is not understood"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_text(str(tmp_path / name))


def test_builtin_halves_are_long_and_share_no_paragraph() -> None:
    first, second = read_text("builtin"), read_text("builtin-heldout")
    assert min(len(first), len(second)) > 100_000
    assert not {p for p in first.split("\n\n") if p} & set(second.split("\n\n"))


def test_a_data_set_by_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"item {i}"}) + "\n" for i in range(3)))
    assert read_text(f"hf:{folder}") == "item 0\n\nitem 1\n\nitem 2"
    assert read_text(f"hf:{folder}/train[:2]") == "item 0\n\nitem 1"
    (folder / "train.jsonl").write_text('{"words": "x"}\n')
    with pytest.raises(RequestError, match='no "text" column; its columns are words'):
        read_text(f"hf:{folder}")
    with pytest.raises(RequestError, match="cannot be loaded"):
        read_text(f"hf:{tmp_path}/nowhere/train")


def test_self_is_written_by_the_model(skeleton: Skeleton) -> None:
    made = load_calibration("self", None, skeleton, windows=3, tokens=12, seed=4)
    again = load_calibration("self", tiny_tokenizer(), skeleton, windows=3, tokens=12, seed=4)
    other = load_calibration("self", None, skeleton, windows=3, tokens=12, seed=5)
    assert made.ids.shape == (3, 12)
    assert made.ids[:, 0].tolist() == [BOS] * 3
    assert EOS not in made.ids
    assert torch.equal(made.ids, again.ids)
    assert made.fingerprint == again.fingerprint != other.fingerprint


def test_self_is_drawn_as_from_the_whole_text() -> None:
    skeleton = Skeleton(tiny_model("llama", 2))
    with torch.no_grad():  # so that what comes next hangs on what is there
        for weights in skeleton.model.parameters():
            weights.mul_(6 if weights.dim() > 1 else 1)
    made = load_calibration("self", None, skeleton, windows=3, tokens=40, seed=4).ids
    generator = torch.Generator().manual_seed(4)
    with torch.inference_mode():
        for at in range(1, made.shape[1]):
            logits = skeleton.model(input_ids=made[:, :at], use_cache=False).logits[:, -1].clone()
            logits[:, EOS] = -torch.inf
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            assert torch.equal(drawn[:, 0], made[:, at])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 0}, "at least 1 window of 2 tokens"),
        ({"tokens": 1}, "at least 1 window of 2 tokens"),
        ({"tokens": 257}, "too long: the model has 256 positions"),
    ],
)
def test_windows_that_no_model_can_score(skeleton: Skeleton, options: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_calibration("builtin", tiny_tokenizer(), skeleton, **options)


def test_text_needs_a_tokenizer_that_fits(skeleton: Skeleton) -> None:
    with pytest.raises(RequestError, match="no tokenizer"):
        load_calibration("builtin", None, skeleton)
    small = Skeleton(tiny_model("llama", 2, vocab_size=100))
    with pytest.raises(RequestError, match="vocabulary has 100"):
        load_calibration("builtin", tiny_tokenizer(), small)
