from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.stops import Detokenizer, StopStrings, TextStream

TEXTS = st.text(alphabet="aé € 😀\n<x", max_size=12)


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is a letter, dropped at the beginning of a text; what is unknown is spelled in bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "x", "▁a", "<"]
    core = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


TOKENIZERS = {"bytes": tiny_tokenizer(), "fallback": byte_fallback_tokenizer()}


def ids_of(name: str, text: str) -> list[int]:
    return list(TOKENIZERS[name](text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(before=TEXTS, text=TEXTS)
def test_a_stream_adds_up_to_the_text_and_never_splits_a_character(name: str, before: str, text: str) -> None:
    decode, whole = TOKENIZERS[name].decode, ids_of(name, before + text)
    # The prompt: so many tokens, as far as they end with a character.
    cut = min(len(whole), len(ids_of(name, before)))
    cut = next(count for count in range(cut, -1, -1) if "\ufffd" not in decode(whole[:count]))
    stream = Detokenizer(TOKENIZERS[name], whole[:cut])
    parts = [stream.push(token) for token in whole[cut:]]
    assert not any("\ufffd" in part for part in parts)
    assert decode(whole[:cut]) + "".join(parts) + stream.close() == before + text


def test_a_prompt_may_end_within_a_character() -> None:
    first, *rest = ids_of("bytes", "😀!")
    stream = Detokenizer(TOKENIZERS["bytes"], [first])
    assert [stream.push(token) for token in rest] == ["", "", "😀", "!"]


def test_a_character_comes_with_its_last_token() -> None:
    stream = Detokenizer(TOKENIZERS["bytes"])
    assert [stream.push(token) for token in ids_of("bytes", "a😀é")] == ["a", "", "", "", "😀", "", "é"]


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(0, 258), max_size=24))
def test_bytes_that_are_no_text_add_up_too(tokens: list[int]) -> None:
    tokenizer = TOKENIZERS["bytes"]
    stream = Detokenizer(tokenizer)
    text = "".join(stream.push(token) for token in tokens) + stream.close()
    assert text == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_that_are_no_text_are_not_held_back_for_ever(name: str) -> None:
    broken = ids_of(name, "é")[-1]  # a byte that begins no character
    stream = Detokenizer(TOKENIZERS[name])
    come = "".join(stream.push(broken) for _ in range(40))
    assert 36 <= len(come) <= 40
    assert set(come) == {"\ufffd"}


def test_special_tokens_are_no_text() -> None:
    stream = Detokenizer(TOKENIZERS["bytes"], [0])
    assert "".join(stream.push(token) for token in [*ids_of("bytes", "hi"), 1, *ids_of("bytes", "!")]) == "hi!"


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab\n", max_size=14),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 14), max_size=6),
)
def test_stop_strings_end_a_text_wherever_its_pieces_end(text: str, stops: list[str], cuts: list[int]) -> None:
    ends = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    watch = StopStrings(stops)
    come = "".join(watch.push(text[a:b]) for a, b in pairwise(ends))
    # What has come out may never have to be taken back.
    assert not any(stop in come for stop in stops)
    come += watch.close()
    places = [text.find(stop) for stop in stops if stop in text]
    assert (watch.stopped is not None) == bool(places)
    if places and len(ends) <= 2:  # in one piece the first place is the one
        assert come == text[: min(places)]
    elif not places:
        assert come == text
    else:
        assert text.startswith(come + str(watch.stopped))


def test_only_what_may_be_a_beginning_is_held_back() -> None:
    watch = StopStrings(["\n\nUser:", "END"])
    assert watch.push("one\n") == "one"
    assert watch.push("two E") == "\ntwo "
    assert watch.push("N") == ""
    assert watch.push("Ds here") == ""
    assert watch.stopped == "END"
    assert watch.push("more") == ""
    assert watch.close() == ""


def test_a_stop_string_across_tokens_and_characters() -> None:
    stream = TextStream(TOKENIZERS["bytes"], stops="é😀")
    come = [stream.push(token) for token in ids_of("bytes", "aé, é😀 b")]
    assert "".join(come) + stream.close() == "aé, "
    assert stream.stopped == "é😀"


def test_the_end_lets_go_of_what_was_held() -> None:
    stream = TextStream(TOKENIZERS["bytes"], stops=["STOP"])
    come = "".join(stream.push(token) for token in ids_of("bytes", "say ST"))
    assert (come, stream.close(), stream.stopped) == ("say ", "ST", None)


@pytest.mark.parametrize("stops", ["", ["a", ""], [3]])
def test_empty_stops_are_refused(stops: object) -> None:
    with pytest.raises(RequestError, match="stop string"):
        StopStrings(stops)  # type: ignore[arg-type]
