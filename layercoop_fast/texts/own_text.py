"""Text that the full model writes itself: from its begin-of-text token (`self`), or as answers (`self:PROMPTS.jsonl`).

    {"prompt": "What is 2 + 2?"}                                    tokens as the tokenizer makes them
    {"messages": [{"role": "user", "content": "What is 2 + 2?"}]}   through the model's chat template

Prompts are context, and the tokens of the answers alone are scored, the one that ends an answer included. So a model
that reasons is measured on its own chains of thought. Every window holds one prompt and the beginning of one answer;
prompts are spread evenly over the file, and take turns where there are fewer than windows. Answers are sampled at
temperature 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.inputs.text import read_json_lines
from layercoop_fast.masks.types import Progress
from layercoop_fast.texts.rows import check_characters
from layercoop_fast.texts.tokens import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from layercoop_fast.engine.skeleton import Skeleton

SELF = "self"
Prompt: TypeAlias = str | list[dict[str, str]]
"""A text, or turns with "role" and "content"."""
_TURNS = ("system", "user", "assistant", "tool")


def is_own(spec: str) -> bool:
    """Whether a SPEC is text that the model writes itself."""
    return spec == SELF or spec.startswith(f"{SELF}:")


def check_prompts(spec: str) -> None:
    """Raise `RequestError` for prompts that cannot be read, where a SPEC of the model's own text names some."""
    if spec != SELF:
        _read_prompts(_file_of(spec))


def sample_from_model(
    skeleton: Skeleton,
    tokenizer: PreTrainedTokenizerBase | None,
    windows: int,
    tokens: int,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Windows that the full model writes itself (temperature 1) from its begin-of-text token: int64 [windows, tokens].

    Ended texts go on: the end token is not drawn, so that all windows have the same length. Models that answer with a
    cache of keys and values are asked for one token at a time; of others the whole text runs again for each token.
    """
    start = first_token(skeleton, tokenizer)
    if start is None:
        raise RequestError("'self' needs a begin-of-text or end-of-text token, and the model names neither")
    return _continued(skeleton, [[start]] * windows, tokens, seed, _stated_ends(skeleton), progress)


def first_token(skeleton: Skeleton, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The token that a text of the model's own begins with; None where the model names none."""
    config = skeleton.model.config.get_text_config(decoder=True)
    start = config.bos_token_id if tokenizer is None or tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return next((int(token) for token in (start, *_stated_ends(skeleton)) if token is not None), None)


def writes_token_by_token(skeleton: Skeleton, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether `self` takes one forward pass of a single token for each token, and not of the whole text.

    So it is for models with a cache of keys and values whose blocks are in memory. False also for a model that names no
    token to begin with.
    """
    begins = first_token(skeleton, tokenizer) is not None
    return begins and skeleton.streamed is None and bool(_cache_argument(skeleton))


def sample_answers(
    spec: str,
    skeleton: Skeleton,
    tokenizer: PreTrainedTokenizerBase,
    windows: int,
    tokens: int,
    seed: int,
    *,
    chat: bool = False,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Prompts with the full model's answers: int64 [windows, tokens], and the answers' places in them.

    With `chat` a `prompt` is a user's turn in the chat template.

    Returns the windows, and int64 [windows, 2]: the first token of each answer and the one behind its last. What comes
    behind an answer that ended is there to fill the window.

    Raises `RequestError` for prompts that cannot be read, and for one that leaves no room for an answer.
    """
    path = _file_of(spec)
    found = [
        (number, _tokens(given, tokenizer, f"{path} line {number}", chat=chat)) for number, given in _read_prompts(path)
    ]
    for number, prompt in found:
        if len(prompt) >= tokens:
            raise RequestError(
                f"{path} line {number}: its prompt has {len(prompt)} tokens, and a window of {tokens} leaves no room "
                "for an answer: ask for longer windows (tokens=)"
            )
    places = np.linspace(0, len(found) - 1, windows).round().astype(int) if len(found) > windows else np.arange(windows)
    prompts = [found[place % len(found)][1] for place in places.tolist()]
    ids = _continued(skeleton, prompts, tokens, seed, [], progress)
    ends = torch.tensor(sorted(_ends(skeleton, tokenizer)), device=ids.device)
    spans = []
    for row, prompt in zip(ids, prompts, strict=True):
        ended = torch.isin(row[len(prompt) :], ends).nonzero()[:, 0].tolist()
        spans.append([len(prompt), len(prompt) + ended[0] + 1 if ended else tokens])
    return ids, torch.tensor(spans)


def greedy_continuations(skeleton: Skeleton, prompts: Tensor, tokens: int) -> Tensor:
    """Prompts, int64 [windows, T], with the full model's likeliest tokens behind them, up to `tokens` tokens in all.

    Whatever ends a text is a token like others, so that all windows have the same length: int64 [windows, tokens].
    """
    return _continued(skeleton, prompts.tolist(), tokens, None, [], None)


def _file_of(spec: str) -> Path:
    path = Path(spec.removeprefix(f"{SELF}:"))
    if path.suffix != ".jsonl":
        raise RequestError(f"{spec} names no prompts: give self:FILE.jsonl, a prompt or messages in each line")
    return path


def _continued(
    skeleton: Skeleton,
    given: Sequence[Sequence[int]],
    tokens: int,
    seed: int | None,
    barred: Sequence[int],
    progress: Progress | None,
) -> Tensor:
    """Given beginnings, continued to `tokens` tokens by draws at temperature 1, of all tokens but the barred ones.

    Without a seed nothing is drawn: each token is the likeliest one. All rows go on together: one whose beginning is
    longer takes its next token from there.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    known = min(map(len, given))
    ids = torch.tensor([list(row[:known]) for row in given], dtype=torch.int64, device=skeleton.device)
    takes = inspect.signature(skeleton.model.forward).parameters
    last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    name = _cache_argument(skeleton)
    cached: dict[str, Any] = {"use_cache": bool(name)}
    with torch.inference_mode():
        for at in range(known, tokens):
            answer = skeleton.model(input_ids=ids[:, -1:] if name in cached else ids, **cached, **last)
            if name and isinstance(cache := getattr(answer, name, None), Cache):
                cached[name] = cache
            logits = answer.logits[:, -1].clone()
            logits[:, barred] = -torch.inf
            if generator is None:
                drawn = logits.argmax(-1, keepdim=True).cpu()
            else:
                drawn = torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator)
            for row, beginning in enumerate(given):
                if at < len(beginning):
                    drawn[row] = beginning[at]
            ids = torch.cat([ids, drawn.to(ids.device)], dim=1)
            if progress is not None:
                progress("tokens of text", ids.shape[1], tokens)
    return ids.clone()  # a tensor made in inference mode cannot be used where gradients are computed


def _cache_argument(skeleton: Skeleton) -> str:
    """The argument of the model's forward that takes a cache of keys and values; empty where it has none."""
    takes = inspect.signature(skeleton.model.forward).parameters
    # The first is its name since transformers 5.
    return next((name for name in ("cache", "past_key_values") if name in takes), "")


def _stated_ends(skeleton: Skeleton) -> list[int]:
    """The end-of-text tokens that the config names."""
    ends = skeleton.model.config.get_text_config(decoder=True).eos_token_id
    return [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]


def _ends(skeleton: Skeleton, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer, by the generation config, the config and the tokenizer."""
    config = skeleton.model.config.get_text_config(decoder=True)
    generation = getattr(skeleton.model, "generation_config", None)
    stated = [getattr(generation, "eos_token_id", None), config.eos_token_id, tokenizer.eos_token_id]
    flat = [end for one in stated for end in (one if isinstance(one, (list, tuple)) else [one])]
    return {int(end) for end in flat if end is not None}


def _read_prompts(path: Path) -> list[tuple[int, Prompt]]:
    """Prompts with the numbers of their lines. Raises `RequestError` that names the line and what is wrong with it."""
    return read_json_lines(str(path), _prompt, "prompts")


def _prompt(fields: object) -> Prompt:
    if not isinstance(fields, dict) or not {"prompt", "messages"} & fields.keys():
        raise RequestError('it is not a JSON object with a "prompt" or "messages" field')
    if "prompt" in fields:
        prompt = fields["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise RequestError('its "prompt" is not a text of at least one character')
        check_characters(prompt)
        return prompt
    turns: list[dict[str, str]] = fields["messages"]
    right = isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)
    if not right or not all(isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")):
        raise RequestError('its "messages" are not a list of objects with the texts "role" and "content"')
    if wrong := [turn["role"] for turn in turns if turn["role"] not in _TURNS]:
        raise RequestError(f'its role "{wrong[0]}" is none of {", ".join(_TURNS)}')
    check_characters(*(turn["content"] for turn in turns))
    return turns


def _tokens(given: Prompt, tokenizer: PreTrainedTokenizerBase, where: str, *, chat: bool) -> list[int]:
    if isinstance(given, str) and not chat:
        return list(tokenizer(given, verbose=False)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError(f"{where}: the model's tokenizer has no chat template: write prompts instead of messages")
    from jinja2.exceptions import TemplateError

    turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise RequestError(f"{where}: the chat template does not take it: {reason(error)}") from error
    return tokens_of(str(text), tokenizer)
