"""Text as an instruct model is used to it: turns of a conversation, in the model's own chat template.

Every window is a conversation of its own. A stretch of the text is cut in two: its first quarter is what the user says,
the rest what the assistant answers. The template puts both into the form the model was trained on (with a system
prompt, where it adds one by itself), and the window is the first T tokens of that. All of them are scored, those of the
template too. Stretches are spread over the text as windows without a template are, and are a quarter longer than a
window, since text that is put together again may have fewer tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.texts.tokens import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stretch_of(tokens: int) -> int:
    """Tokens of text that a conversation of `tokens` tokens is made of."""
    return tokens + tokens // 4


def chat_windows(stretches: NDArray[np.int64], tokens: int, tokenizer: PreTrainedTokenizerBase, spec: str) -> Tensor:
    """Conversations of T tokens, int64 [windows, T], from stretches of text, int64 [windows, `stretch_of`(T)].

    Raises `RequestError` where the tokenizer has no template, or its template leaves no room for text.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError("the model's tokenizer has no chat template: leave chat=True out")
    asked = max(1, tokens // 4)
    overhead = len(_conversation(tokenizer, "?", "!"))
    if overhead >= tokens:
        raise RequestError(
            f"the chat template alone takes {overhead} tokens of a window of {tokens}: ask for longer windows"
        )
    rows = []
    for stretch in stretches.tolist():
        question, answer = (
            # A stretch may begin or end within a character.
            tokenizer.decode(part).strip("\ufffd").strip()
            for part in (stretch[:asked], stretch[asked:])
        )
        ids = _conversation(tokenizer, question, answer)
        if len(ids) < tokens:
            raise RequestError(
                f"{spec}: a stretch of {len(stretch)} tokens makes a conversation of {len(ids)} and {tokens} are "
                "wanted: this text is not prose, leave chat=True out"
            )
        rows.append(ids[:tokens])
    return torch.tensor(rows, dtype=torch.int64)


def _conversation(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> list[int]:
    """Tokens of one question and its answer."""
    from jinja2.exceptions import TemplateError

    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        raise RequestError(f"the chat template takes no question and answer: {reason(error)}") from error
    return tokens_of(str(text), tokenizer)
