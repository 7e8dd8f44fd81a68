"""What the full and the pruned model write after the same prompts, with greedy decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from layercoop_fast.errors import RunError
from layercoop_fast.files import reason
from layercoop_fast.texts.calibration import cut_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT_TOKENS, NEW_TOKENS = 32, 40


@dataclass(frozen=True)
class Prompts:
    """Prompts of equal length, int64 [P, T], cut from a text, and the tokenizer that reads what follows them."""

    ids: torch.Tensor
    tokenizer: PreTrainedTokenizerBase
    new_tokens: int = NEW_TOKENS

    @classmethod
    def cut(cls, text: str, tokenizer: PreTrainedTokenizerBase, count: int, limit: int | None) -> Prompts:
        """`count` prompts spread over the text; shorter ones where a model has few positions (`limit`)."""
        room = PROMPT_TOKENS + NEW_TOKENS if limit is None else limit
        tokens = max(2, min(PROMPT_TOKENS, room - NEW_TOKENS))
        new_tokens = max(1, min(NEW_TOKENS, room - tokens))
        return cls(cut_windows(text, tokenizer, count, tokens), tokenizer, new_tokens)

    def texts(self) -> list[str]:
        """The prompts as text."""
        return [self._text(row) for row in self.ids]

    def continued(self, model: PreTrainedModel) -> list[str]:
        """What `model` writes after each prompt, `new_tokens` tokens at most.

        Raises `RunError` where its `generate` refuses: it cannot here, or not in this memory.
        """
        ids = self.ids.to(model.device)
        options: dict[str, Any] = {
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": self.new_tokens,
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "pad_token_id": self._padding(),
        }
        # Code that comes with a checkpoint may be older than transformers' caches, and fails in ways of its own.
        foreign = type(model).__module__.startswith("transformers_modules.")
        refusals: tuple[type[Exception], ...] = (Exception,) if foreign else (RuntimeError, ValueError, MemoryError)
        try:
            with torch.inference_mode():
                written: Any = model.generate(ids, **options)
        except refusals as error:
            raise RunError(f"{type(model).__name__} generates nothing here: {reason(error)}") from error
        return [self._text(row[ids.shape[1] :]) for row in written]

    def _padding(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in known if isinstance(token, int)), 0)

    def _text(self, row: torch.Tensor) -> str:
        return str(self.tokenizer.decode(row.tolist(), skip_special_tokens=True))
