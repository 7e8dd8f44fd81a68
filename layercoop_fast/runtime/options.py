"""What a model that generates is opened with, and how it chooses tokens."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import MACHINE, SAMPLING, TEXT, option

# Beyond the k-th, for tokens that are as likely as it is: the cut keeps them.
_EQUALS = 8


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """The keywords of `LayerSkipModel.from_pretrained` that the command line has too."""

    dtype: str = option(
        "auto", MACHINE, "Type of the weights: float32, bfloat16, int8, int4, or auto: the checkpoint's own."
    )
    executor: str = option(
        "auto", MACHINE, "What runs the model: native (C++, llama-shaped models), transformers, or auto."
    )
    device: str = option("cpu", MACHINE, "cpu, cuda or cuda:N.")
    kv_memory: int | None = option(
        None, MACHINE, "Memory for keys and values, for example 1GiB. Default: a quarter of what is free.", read="size"
    )
    kv_dtype: str = option(
        "auto",
        MACHINE,
        "Type of the keys and values in the native executor: float32, bfloat16, float16 or int8. auto: the type of "
        "the weights, and float16 with quantised weights.",
    )


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Where an answer ends.

    Attributes:
        max_new_tokens: tokens of an answer at most.
        stop: texts that end an answer.
        ignore_eos: continue after the token that marks the end of a text.
    """

    max_new_tokens: int = option(128, TEXT, "Largest number of tokens in an answer.", short="n", least=1)
    stop: Sequence[str] = option(
        (), TEXT, "Text that ends an answer; give the option once for each text.", read="texts"
    )
    ignore_eos: bool = option(False, TEXT, "Continue after the token that marks the end of a text.")


@dataclass(frozen=True)
class Sampling:
    """How next tokens are chosen. The defaults are greedy.

    Attributes:
        temperature: logits are divided by it; 0 always takes the most likely token.
        top_k: only tokens at least as likely as the k-th most likely; 0: no such cut.
        top_p: only the most likely tokens that together reach this probability (nucleus sampling), one at least.
        min_p: only tokens at least this fraction as likely as the most likely one.
        repetition_penalty: logits of tokens that prompt or answer already hold are divided by it where positive and
            multiplied where negative (CTRL, arXiv 1909.05858); 1: none. It applies to greedy choices too.
        seed: of the random numbers; None draws a new one for each request.

    Raises `RequestError` for numbers that have no such meaning.

    Examples:
        >>> from layercoop_fast import LayerSkipModel, Sampling
        >>> model = LayerSkipModel.from_pretrained("my-model")
        >>> way = Sampling(temperature=0.8, top_p=0.9, seed=1)
        >>> one, other = (model.generate([5, 6, 7], max_new_tokens=4, sampling=way) for _ in range(2))
        >>> one.tokens == other.tokens
        True
    """

    temperature: float = option(0.0, SAMPLING, "0: always the most likely token. Higher: more varied tokens.")
    top_k: int = option(0, SAMPLING, "Draw from the K most likely tokens only; 0: from all tokens.")
    top_p: float = option(1.0, SAMPLING, "Draw from the most likely tokens whose probabilities add up to this.")
    min_p: float = option(
        0.0, SAMPLING, "Draw from tokens whose probability is at least this fraction of the most likely one's."
    )
    repetition_penalty: float = option(1.0, SAMPLING, "Above 1: tokens that were used already become less likely.")
    seed: int | None = option(0, SAMPLING, "Seed of the random numbers; without one, every run draws others.", least=0)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, None),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.0, None),
        ):
            _check_number(name, getattr(self, name), low, high)
        if self.repetition_penalty == 0:
            raise RequestError("repetition_penalty must be above 0: 1 is none, 1.1 a mild one")
        whole: tuple[tuple[str, Any], ...] = (("top_k", self.top_k), ("seed", self.seed))
        for name, value in whole:
            if name == "seed" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
                raise RequestError(f"{name} must be a whole number of 0 or more, not {value!r}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    @property
    def plain(self) -> bool:
        """Whether the next token is the argmax of the logits as they come."""
        return self.greedy and self.repetition_penalty == 1

    @property
    def reach(self) -> int:
        """How many of the most likely tokens decide, if all choices are among so few; else 0."""
        if self.repetition_penalty != 1 or not (self.greedy or self.top_k):
            return 0
        return 1 if self.greedy else self.top_k + _EQUALS


def _check_number(name: str, value: float, low: float, high: float | None) -> None:
    right = f"{low:g} or more" if high is None else f"between {low:g} and {high:g}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, str)) or not math.isfinite(number) or number < low or (high or number) < number:
        raise RequestError(f"{name} must be a number, {right}, not {value!r}")
