"""Generated answers to many prompts under many masks, on one copy of the weights.

The text of an answer is what the harness's own `hf` model returns: the answer's tokens decoded by themselves, without
special tokens, up to the first stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.masks.types import Progress
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.opening import open_runtime
from layercoop_fast.runtime.options import Sampling

_TOGETHER = 64
"""Requests of one call, for each mask: enough to fill every step, few enough to see progress."""


@dataclass(frozen=True)
class Prompt:
    """Tokens to continue, and how.

    Attributes:
        tokens: at least one.
        max_new_tokens: most tokens of the answer.
        stops: strings that end it.
        sampling: how tokens are chosen, greedily by default.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


class Answers:
    """Answers prompts under masks.

    Args:
        path: the checkpoint's folder.
        masks: uint8 [L] each, the halves of blocks that a mask keeps.
        dtype: of the weights, as in `LayerSkipModel.from_pretrained`.
        device: "cpu", "cuda" or "cuda:N".

    Raises `RequestError` for a checkpoint without a tokenizer, and for masks that cannot run.
    """

    def __init__(self, path: str | Path, masks: Sequence[Halves], *, dtype: str = "auto", device: str = "cpu") -> None:
        opened = open_runtime(path, dtype=dtype, device=device)
        if opened.tokenizer is None:
            raise RequestError(f"{path} holds no tokenizer, so answers cannot be read: add it to the folder")
        self.tokenizer = opened.tokenizer
        # The tokenizer's end of text ends an answer too, as for the harness's own model.
        ends = {end for end in (opened.tokenizer.eos_token_id,) if isinstance(end, int)}
        self.model = LayerSkipModel(replace(opened, eos=opened.eos | ends))
        self.masks = [self.model.mask(mask) for mask in masks]

    def write(self, prompts: Sequence[Prompt], progress: Progress | None = None) -> list[list[str]]:
        """The answers of each mask, M lists of texts in the order of the prompts; `progress` counts prompts."""
        found: list[list[str]] = [[""] * len(prompts) for _ in self.masks]
        done = 0
        for numbers in self._batches(prompts):
            first = prompts[numbers[0]]
            # Masks of one prompt stand together: they read it together.
            generated = self.model.generate(
                [prompts[number].tokens for number in numbers for _ in self.masks],
                [mask for _ in numbers for mask in self.masks],
                max_new_tokens=first.max_new_tokens,
                sampling=first.sampling,
                stop=first.stops,
            )
            assert isinstance(generated, list)
            for place, (number, mask) in enumerate(np.ndindex(len(numbers), len(self.masks))):
                found[mask][numbers[number]] = self._text(generated[place].tokens, first.stops)
            done += len(numbers)
            if progress is not None:
                progress("answers", done, len(prompts))
        return found

    def _batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Prompts by number that are answered in one call: those that are continued in one way."""
        ways: dict[tuple[int, tuple[str, ...], Sampling], list[int]] = {}
        for number, prompt in enumerate(prompts):
            ways.setdefault((prompt.max_new_tokens, prompt.stops, prompt.sampling), []).append(number)
        return [
            numbers[first : first + _TOGETHER]
            for numbers in ways.values()
            for first in range(0, len(numbers), _TOGETHER)
        ]

    def _text(self, tokens: Sequence[int], stops: Sequence[str]) -> str:
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        for stop in stops:
            text = text.split(stop)[0]
        return text
