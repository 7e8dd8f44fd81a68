"""Looks at the held-out windows of every kind while a model is healed, and which state is the best so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from layercoop_fast.healing.reading import Reader
from layercoop_fast.healing.texts import HealingTexts

# Windows and rows at once.
_BATCH = 8
_ROWS = 64


@dataclass(frozen=True)
class Look:
    """Mean NLL by kind, in nats a token.

    Attributes:
        choice: on the windows by which the best state is chosen, by SPEC.
        check: on those by which a state may be refused, by SPEC.
    """

    choice: dict[str, float]
    check: dict[str, float]

    @property
    def mean(self) -> float:
        """Over the kinds, on the windows of the choice."""
        return sum(self.choice.values()) / len(self.choice)

    def harms(self, before: Look) -> list[str]:
        """The kinds that are worse than before, or not finite, on either half of the windows."""
        return [
            spec
            for spec in self.choice
            if not (self.choice[spec] <= before.choice[spec] and self.check[spec] <= before.check[spec])
        ]

    def as_json(self) -> dict[str, Any]:
        """With null where a mean is not finite."""
        return {
            name: {spec: value if math.isfinite(value) else None for spec, value in part.items()}
            for name, part in (("choice", self.choice), ("check", self.check))
        }

    @classmethod
    def of(cls, found: dict[str, dict[str, float | None]]) -> Look:
        """What `as_json` returned."""
        return cls(*({spec: math.nan if v is None else v for spec, v in found[name].items()} for name in _HALVES))


_HALVES = ("choice", "check")


@torch.no_grad()
def look(reader: Reader, texts: HealingTexts) -> Look:
    """Measure a model on the held-out windows of every kind."""
    device = reader.projection.weight.device
    kinds = texts.kinds
    return Look(
        {kind.spec: mean_nll(reader, kind.choice.to(device)) for kind in kinds},
        {kind.spec: mean_nll(reader, kind.check.to(device)) for kind in kinds},
    )


@torch.no_grad()
def mean_nll(reader: Reader, windows: Tensor) -> float:
    """Mean −log q(next token) over windows int64 [W, T], in nats."""
    total, head = 0.0, reader.head
    for at in range(0, len(windows), _BATCH):
        ids = windows[at : at + _BATCH]
        states = reader.states(ids)
        states = states.view(*ids.shape, -1)[:, :-1].reshape(-1, states.shape[-1])
        targets = ids[:, 1:].reshape(-1)
        for first in range(0, len(states), _ROWS):
            rows = slice(first, first + _ROWS)
            z = head.ended(head.logits(states[rows]))
            total += float(functional.cross_entropy(z, targets[rows], reduction="sum"))
    return total / (len(windows) * (windows.shape[1] - 1))
