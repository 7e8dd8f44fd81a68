"""What `heal` is asked for. Nothing here loads torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import HEALING, MACHINE, MODEL, OUTPUT, TEXT, option

KINDS = ("all", "head+last:N", "lora:R", "norms")
"""What can be trained."""

MINUTES = 20.0
_LARGEST = 2**20  # windows of a step, tokens of a window


@dataclass(frozen=True)
class Trained:
    """Which parameters are trained.

    Attributes:
        kind: "all", "head+last", "lora" or "norms".
        number: blocks of "head+last", rank of "lora"; else 0.
    """

    kind: str
    number: int = 0

    @classmethod
    def read(cls, text: str) -> Trained:
        """From "all", "head+last:3", "lora:16" or "norms". Raises `RequestError` for anything else."""
        kind, colon, number = text.partition(":")
        if not colon and kind in ("all", "norms"):
            return cls(kind)
        counted = number.isascii() and number.isdecimal() and 0 < len(number) < 6 and int(number) > 0
        if kind in ("head+last", "lora") and counted:
            return cls(kind, int(number))
        raise RequestError(f"train={text!r} is none of {', '.join(KINDS)} (N blocks, R the rank, from 1 on)")


@dataclass(frozen=True, kw_only=True)
class HealRequest:
    """Everything `heal` can be asked for; the fields are its keywords.

    Attributes:
        train: what is trained: "all" parameters but the input embedding, "head+last:N" (the last N blocks and what
            comes after them), "lora:R" (adapters of rank R, merged into the weights at the end), or "norms". A matrix
            that the head shares with the embedding is never trained, and neither is a matrix of zeros, which stands
            for a removed half of a block.
        minutes: of training; 20 where neither this nor `tokens` is given. Looks at held-out text count; opening does
            not, nor does writing, of the state neither.
        tokens: or the number of tokens to train on.
        text: SPECs to train on and to watch; None: the calibration text of the pruning, "builtin",
            "builtin-docstrings" and "builtin-code". Perplexity protocols (ppl:*) are tests, and refused.
        self_text: train on text that the teacher writes itself too.
        watch: SPECs of texts that are only looked at: nothing is trained on them, and nothing depends on them. The
            time that this takes does not count.
        window: tokens of a window.
        batch: windows of a step.
        learning_rate: the largest, reached after the warm-up; None: the default of `train`.
        watch_every: tokens between two looks at the held-out windows.
        cache_teacher: folder where the teacher's most likely tokens are kept, to be read instead of computed again.
        teacher_top: tokens of each position that are kept there.
        seed: of the order of the windows, of adapters and of `self_text`.
        dtype: of the weights in products: "auto" is the checkpoint's own, or fp32 where the processor is slow in that.
        device: "cpu", "cuda" or "cuda:N".
        checkpointing: compute the blocks' activations again in the backward pass instead of keeping them; None: where
            they would not fit.
        trust_remote_code: run Python code from the checkpoints.
        resume: go on with a run that was stopped.
        force: replace a folder that is there; without `resume` also throw away the state that a stopped run left.
        report: write `report.html` too, where the checkpoint has a record of `prune`.
    """

    train: str = option("all", HEALING, "What is trained: all, head+last:N, lora:R or norms.")
    minutes: float | None = option(None, HEALING, "Minutes of training. Default: 20, unless tokens= is given.")
    tokens: int | None = option(None, HEALING, "Or tokens to train on, for example 1M.", read="count")
    learning_rate: float | None = option(None, HEALING, "The largest learning rate. Default: by what is trained.")
    batch: int = option(8, HEALING, "Windows of a step.", least=1)
    watch_every: int = option(32_768, HEALING, "Tokens between two looks at the held-out windows.", least=1)
    cache_teacher: Path | None = option(
        None, HEALING, "Folder to keep the teacher's most likely tokens in, and to read them from.", read="path"
    )
    teacher_top: int = option(64, HEALING, "Tokens of each position that are kept there.", least=1)
    seed: int = option(0, HEALING, "Of the order of windows, of adapters and of text that the teacher writes.")
    text: Sequence[str] | None = option(
        None,
        TEXT,
        "Text to train on and to watch; give the option once for each text. Default: the calibration text of the "
        "pruning, builtin, builtin-docstrings and builtin-code.",
        read="texts",
    )
    self_text: bool = option(False, TEXT, "Train on text that the teacher writes itself, too.")
    watch: Sequence[str] | None = option(
        None,
        TEXT,
        "Text that is only looked at on the way; give the option once for each text.",
        read="texts",
    )
    window: int = option(128, TEXT, "Tokens of a window.", least=2)
    trust_remote_code: bool = option(False, MODEL, "Run Python code that comes with the checkpoints.")
    resume: bool = option(False, OUTPUT, "Go on with a run that was stopped.")
    report: bool = option(True, OUTPUT, "Write DIR/report.html, where prune wrote one.")
    force: bool = option(False, OUTPUT, "Replace what is there; without resume= the state of a stopped run, too.")
    dtype: str = option("auto", MACHINE, "Type of the weights in products: auto, float32 or bfloat16.")
    device: str = option("cpu", MACHINE, "cpu, cuda or cuda:N.")
    checkpointing: bool | None = option(
        None, MACHINE, "Compute activations again in the backward pass. Default: where they would not fit."
    )

    @property
    def trained(self) -> Trained:
        """What is trained, read from `train`."""
        return Trained.read(self.train)

    @property
    def seconds(self) -> float | None:
        """Seconds of training; None where tokens were asked for."""
        return None if self.tokens is not None else 60 * (MINUTES if self.minutes is None else self.minutes)

    def check(self) -> None:
        """Raise `RequestError` for what can be seen before anything is opened."""
        _ = self.trained
        if self.minutes is not None and self.tokens is not None:
            raise RequestError("minutes= and tokens= both say when healing ends: give one of them")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise RequestError(f"minutes={self.minutes} is no time to train: give a number above 0")
        if self.tokens is not None and self.tokens < 1:
            raise RequestError(f"tokens={self.tokens} is nothing to train on: give a number like 1M")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise RequestError(f"learning_rate={self.learning_rate} is not between 0 and 1")
        for name, least in (("batch", 1), ("window", 2), ("watch_every", 1), ("teacher_top", 1)):
            if not least <= getattr(self, name):
                raise RequestError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.batch > _LARGEST or self.window > _LARGEST:
            raise RequestError(f"batch= and window= are at most {_LARGEST:,}")
        if self.text is not None and (not self.text or len(set(self.text)) < len(self.text)):
            raise RequestError(f"healing needs texts, each given once, not {list(self.text)}")
        if self.dtype not in ("auto", "float32", "fp32", "bfloat16", "bf16"):
            raise RequestError(f"unknown dtype {self.dtype!r}: choose from auto, float32, bfloat16")
