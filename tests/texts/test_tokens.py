"""The short way to a text's tokens gives those of the tokenizer's own call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny_models import SPECIAL_TOKENS, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, PreTrainedTokenizerFast

from layercoop_fast.texts.tokens import tokens_of

BEGIN = SPECIAL_TOKENS[0]
TEXTS = ["", " ", "One LINE", "two\n\nlines, ünïcode and 日本", f"{BEGIN}a text that names special tokens{BEGIN}"]


class Lower(PreTrainedTokenizerFast):
    """Changes texts before they reach the part in Rust."""

    def _encode_plus(self, text: str, *arguments: object, **options: object) -> BatchEncoding:
        return super()._encode_plus(text.lower(), *arguments, **options)


def lowering() -> PreTrainedTokenizerFast:
    return Lower(tokenizer_object=tiny_tokenizer().backend_tokenizer)


def cutting() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    return tokenizer


def padding() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=50)
    return tokenizer


def splitting() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.split_special_tokens = True
    return tokenizer


@pytest.mark.parametrize("make", [tiny_tokenizer, lowering, cutting, padding, splitting])
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_the_call(make: Callable[[], PreTrainedTokenizerFast], text: str) -> None:
    # Another tokenizer each: a call turns truncation and padding off.
    assert tokens_of(text, make()) == list(make()(text, add_special_tokens=False)["input_ids"])


def test_what_a_tokenizer_puts_around_a_text_is_left_out() -> None:
    tokenizer = tiny_tokenizer()
    begin = tokenizer.convert_tokens_to_ids(BEGIN)
    processor = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    tokenizer.backend_tokenizer.post_processor = processor
    assert tokenizer("a")["input_ids"] == [begin, *tokens_of("a", tokenizer)]
