"""Tokens of a text, by a model's tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def tokens_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a text, without those that the tokenizer puts around one.

    What is called is the part of a tokenizer in Rust, where the rest of it would change nothing: the tokenizer itself
    also finds where in the text each token is, which takes as long as the tokens.
    """
    if _is_plain(tokenizer):
        return list(tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer hands its text to Rust as it is, and takes the tokens as they come."""
    kind, plain = type(tokenizer), PreTrainedTokenizerFast
    if (
        not issubclass(kind, plain)
        or kind.__call__ is not plain.__call__
        or kind._encode_plus is not plain._encode_plus
    ):
        return False
    inner = tokenizer.backend_tokenizer
    as_asked = inner.encode_special_tokens == tokenizer.split_special_tokens
    return as_asked and inner.truncation is None and inner.padding is None
