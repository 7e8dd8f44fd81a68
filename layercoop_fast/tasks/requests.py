"""From requests of the harness to tokens, as its own `hf` model makes them.

The rules are those of `lm_eval.models.huggingface.HFLM` (version 0.4.13): a tokenizer's own begin-of-text token is put
before contexts and documents, unless they begin with it; what is too long for the model loses tokens at its left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.tasks.answers import Prompt
from layercoop_fast.texts.token_tree import Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_UNKNOWN_LENGTH = 2048
_NO_LIMIT = 10**29  # what tokenizers without a limit say is larger
_MAX_NEW_TOKENS = 256
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def longest_text(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens that a model takes: by its config, else by its tokenizer, else 2,048."""
    config = getattr(config, "text_config", None) or config
    for name in _LENGTHS:
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    stated = int(tokenizer.model_max_length)
    return stated if stated < _NO_LIMIT else _UNKNOWN_LENGTH


def encode(
    text: str, tokenizer: PreTrainedTokenizerBase, prefix: int, *, special: bool | None, bos: bool | None
) -> list[int]:
    """Tokens of a text.

    Args:
        text: any text.
        tokenizer: of the model.
        prefix: the token that texts without a context begin with; a text that begins with it gets no other.
        special: whether the tokenizer adds its special tokens; None: as `bos`, else by its own rule.
        bos: what the user asked for, by the argument `add_bos_token`.
    """
    added = special if special is not None else bos
    if special is None and text.startswith(str(tokenizer.decode(prefix))):
        added = False
    return list(tokenizer.encode(text, verbose=False, **({} if added is None else {"add_special_tokens": added})))


def scored(context: Sequence[int], continuation: Sequence[int], longest: int) -> Scored:
    """Context and continuation as one sequence of at most `longest` + 1 tokens (the last one is only predicted).

    Raises `RequestError` for a context or a continuation without tokens, and for a continuation that is longer than
    the model takes.
    """
    if not context:
        raise RequestError(
            "a task has a context without tokens, spaces alone for example, after which nothing can be predicted: "
            "leave the document out, or make the context empty (then it is the begin-of-text token)"
        )
    if not continuation:
        raise RequestError("a task asks for the likelihood of a continuation that has no tokens")
    if len(continuation) > longest:
        raise RequestError(f"a continuation has {len(continuation)} tokens, and the model takes {longest}")
    tokens = (*context, *continuation)[-(longest + 1) :]
    return Scored(tokens, len(tokens) - len(continuation))


def prompt_of(
    text: str, arguments: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, longest: int, *, bos: bool | None
) -> Prompt:
    """A prompt from the context and the arguments of a request to generate.

    Raises `RequestError` for arguments that mean something the runtime does not do, and for an answer that leaves no
    room for its prompt.
    """
    arguments = dict(arguments)
    lengths = [value for name in _NEW_TOKENS if (value := arguments.pop(name, None)) is not None]
    new = int(lengths[0]) if lengths else _MAX_NEW_TOKENS
    if new >= longest:
        raise RequestError(f"a task asks for answers of {new} tokens, and the model takes {longest}")
    until = arguments.pop("until", None) or []
    stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
    sampling = _sampling(arguments)
    begins = tokenizer.bos_token is not None and text.startswith(str(tokenizer.bos_token))
    added = False if begins else bos
    tokens = tokenizer.encode(text, verbose=False, **({} if added is None else {"add_special_tokens": added}))
    return Prompt(tuple(tokens[-(longest - new) :]), new, stops, sampling)


def _sampling(arguments: dict[str, Any]) -> Sampling:
    temperature = float(arguments.pop("temperature", 0.0) or 0.0)
    draws = arguments.pop("do_sample", None)
    how = {name: arguments.pop(name) for name in ("top_k", "top_p", "min_p") if name in arguments}
    if arguments:
        raise RequestError(
            f"a task asks to generate with {', '.join(sorted(arguments))}, which is not offered: "
            "until, max_gen_toks, do_sample, temperature, top_k, top_p and min_p are"
        )
    if draws is False or temperature == 0:
        return Sampling()
    return Sampling(temperature=temperature, seed=0, **how)
