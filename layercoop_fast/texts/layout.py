"""Which token of a set of items belongs to which option, and which option to which item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layercoop_fast.masks.types import Floats
from layercoop_fast.texts.domains import Ints


@dataclass(frozen=True, eq=False)
class Layout:
    """Which token belongs to which option, and that to which item: O options of I items, N tokens in this order.

    Attributes:
        options: int64 [I], options of each item.
        labels: int64 [I], the true one, from 0.
        tokens: int64 [O], scored tokens of each option.
        characters: int64 [O], length of each option's text.
    """

    options: Ints
    labels: Ints
    tokens: Ints
    characters: Ints

    def as_json(self) -> dict[str, list[int]]:
        """Ready for JSON; `of` reads it."""
        return {name: getattr(self, name).tolist() for name in ("options", "labels", "tokens", "characters")}

    @classmethod
    def of(cls, fingerprint: object) -> Layout | None:
        """The layout in a game's `calibration` fingerprint; None where that is of text."""
        if not isinstance(fingerprint, Mapping) or "options" not in fingerprint:
            return None
        return cls(*(np.array(fingerprint[name], np.int64) for name in ("options", "labels", "tokens", "characters")))

    def fits(self, n_tokens: int) -> bool:
        """Whether these are at least two options an item and one token an option, `n_tokens` scored tokens in all."""
        n_items, n_options = len(self.options), len(self.tokens)
        counts = (self.options, self.labels, self.tokens, self.characters)
        return bool(
            all(one.ndim == 1 and one.size and one.min() >= 0 and one.max() < 2**31 for one in counts)
            and self.labels.shape == (n_items,)
            and self.characters.shape == (n_options,)
            and self.options.min() > 1
            and (self.labels < self.options).all()
            and min(self.tokens.min(), self.characters.min()) > 0
            and self.options.sum() == n_options
            and self.tokens.sum() == n_tokens
        )

    @cached_property
    def first_options(self) -> Ints:
        """The first option of each item, int64 [I]."""
        return _starts(self.options)

    @cached_property
    def true_options(self) -> Ints:
        """The true option of each item, int64 [I]."""
        return self.first_options + self.labels

    def sums(self, values: Floats) -> Floats:
        """Sums over each option's tokens: [M, N] → [M, O]."""
        return np.asarray(np.add.reduceat(values, _starts(self.tokens), axis=1))

    def nested(self, values: Floats) -> list[list[Floats]]:
        """One mask's numbers [N] by item and option."""
        by_option = np.split(values, np.cumsum(self.tokens)[:-1])
        return [
            by_option[first : first + count]
            for first, count in zip(self.first_options.tolist(), self.options.tolist(), strict=True)
        ]

    def item_nll(self, token_nll: Floats) -> Floats:
        """Mean NLL a token of each item's true option, nats: [M, N] → [M, I]."""
        return np.asarray((self.sums(token_nll) / self.tokens)[:, self.true_options])


def _starts(counts: Ints) -> Ints:
    return np.cumsum(counts) - counts
