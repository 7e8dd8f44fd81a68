"""Worths: from how well a masked model predicts the calibration tokens to one number a mask.

With q_m(·|t) the masked model's next-token distribution after position t, x the tokens, S the scored positions (every
token of a window but its first) and `full` the model with all its layers:

    nll(m) = −1/|S| Σ_t log q_m(x_{t+1} | t)                           nats a token
    kl(m)  =  1/|S| Σ_t Σ_v q_full(v|t) (log q_full(v|t) − log q_m(v|t))    nats a token, exact over the vocabulary

    ppl_ratio   exp(nll(full) − nll(m)) = ppl(full) / ppl(m)           the published worth, in [0, about 1]
    nll         −nll(m)
    kl          −kl(m)
    blend:A     −(A · (nll(m) − nll(full)) + (1 − A) · kl(m))          0 < A < 1, both in nats a token

With several texts nll and kl are weighted means over the texts (`texts/domains.py`). With `:worst` after the name the
worth is the least over the texts, each taken as nll(full) + the rise of its own nll, and its own kl.

A model that breaks down may give NaN or infinity; such worths are carried as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.item_utility import CHOICE_UTILITIES, ChoiceUtility
from layercoop_fast.masks.types import Floats
from layercoop_fast.texts.domains import OBJECTIVES, Domains
from layercoop_fast.texts.text import Text


@dataclass(frozen=True)
class Utility:
    """A named worth.

    Attributes:
        name: as the command line knows it.
        needs_teacher: whether the full model's distribution is compared with (`kl` is then measured).
        worth: (nll [M], kl [M], nll of the full model) → worths [M]; `kl` holds NaN where it was not measured.
        parts: (a, b) where the loss, on the scale that searches use, is a · (nll(m) − nll(full)) + b · kl(m), so that
            every window has a loss of its own; None for worths of another kind.
        objective: "mean" over several texts, or "worst".
        of_items: whether it is a worth of items with options.
    """

    name: str
    needs_teacher: bool
    worth: Callable[[Floats, Floats, float], Floats]
    parts: tuple[float, float] | None = None
    objective: str = "mean"
    of_items: ClassVar[bool] = False

    def judge(
        self, window_nll: Floats, window_kl: Floats, full_nll: Floats, calibration: object
    ) -> tuple[Floats, Floats]:
        """Worths [M] and mean NLL [M] of masks' NLL and KL [M, W], and the full model's NLL [W].

        `calibration` is the fingerprint of the game's text, of which these are the first W windows.
        """
        domains = Domains.of(calibration)
        if domains is None and isinstance(calibration, Mapping):
            raise RequestError(
                f"the utility {self.name} is one of text; for items with options choose from "
                f"{', '.join(CHOICE_UTILITIES)}"
            )
        if domains is None:
            nll, kl = window_nll.mean(axis=1), window_kl.mean(axis=1)
            return np.asarray(self.worth(nll, kl, float(full_nll.mean())), dtype=np.float64), nll
        domains = domains.part(0, window_nll.shape[1])
        nll, full = domains.mean(window_nll), float(domains.mean(full_nll))
        if self.objective == "mean":
            return np.asarray(self.worth(nll, domains.mean(window_kl), full), dtype=np.float64), nll
        rises, kls = domains.by_domain(window_nll - full_nll), domains.by_domain(window_kl)
        worths = [self.worth(full + rise, kl, full) for rise, kl in zip(rises.T, kls.T, strict=True)]
        return np.asarray(np.min(worths, axis=0), dtype=np.float64), nll

    def window_losses(self, nll: Floats, kl: Floats, full_nll: Floats, full_kl: Floats) -> Floats:
        """What each window's loss rose by, [..., W], of NLL and KL [..., W] and the full model's; needs `parts`."""
        assert self.parts is not None
        with np.errstate(all="ignore"):  # a broken model's infinities are results
            terms = zip(self.parts, (nll, kl), (full_nll, full_kl), strict=True)
            # What has no part may be NaN: it was not measured.
            return np.asarray(sum(part * (value - full) for part, value, full in terms if part))


UTILITIES = {
    utility.name: utility
    for utility in (
        Utility("ppl_ratio", False, lambda nll, kl, full: np.exp(full - nll), (1.0, 0.0)),
        Utility("nll", False, lambda nll, kl, full: -nll, (1.0, 0.0)),
        Utility("kl", True, lambda nll, kl, full: -kl, (0.0, 1.0)),
    )
}


def blend(share: float) -> Utility:
    """−(share · rise of NLL + (1 − share) · KL); `RequestError` unless 0 < share < 1."""
    if not 0 < share < 1:
        raise RequestError(f"blend:{share:g} is not a share of NLL between 0 and 1: write blend:0.5, or nll, or kl")
    name = f"blend:{np.format_float_positional(share)}"
    return Utility(name, True, lambda nll, kl, full: -(share * (nll - full) + (1 - share) * kl), (share, 1 - share))


def worst_of_texts(utility: Utility) -> Utility:
    """The same worth on the text that rose most."""
    return replace(utility, name=f"{utility.name}:worst", objective="worst")


def names_objective(name: str) -> bool:
    """Whether the name of a utility ends in an objective."""
    return name.rpartition(":")[2] in OBJECTIVES


def with_objective(utility: str | Utility | ChoiceUtility, before: Utility | ChoiceUtility) -> Utility | ChoiceUtility:
    """The utility, with the objective of another one where it is a name that says nothing about that."""
    if isinstance(utility, str) and not before.of_items and not names_objective(utility):
        utility = f"{utility}:{before.objective}"
    return get_utility(utility)


def check_fit(text: Text, utility: Utility | ChoiceUtility, score_every: int) -> None:
    """Raise `RequestError` where a utility of text meets items with options, or the other way round."""
    if text.has_windows == utility.of_items:
        wants = "items with options" if utility.of_items else "text"
        raise RequestError(f"the utility {utility.name} is one of {wants}, the calibration is {text.kind}")
    if utility.of_items and score_every != 1:
        raise RequestError("score_every= belongs to text: all tokens of all options of items are scored")


def get_utility(utility: str | Utility | ChoiceUtility) -> Utility | ChoiceUtility:
    """Look a utility up by name; one made by the user passes through. `RequestError` names those there are."""
    if isinstance(utility, (Utility, ChoiceUtility)):
        return utility
    return _named(utility)


@cache
def _named(name: str) -> Utility | ChoiceUtility:
    known: dict[str, Utility | ChoiceUtility] = {**UTILITIES, **CHOICE_UTILITIES}
    plain, _, objective = name.rpartition(":") if names_objective(name) else (name, "", "mean")
    share = plain.removeprefix("blend:")
    if plain != share and re.fullmatch(r"\d*\.?\d+", share):
        found: Utility | ChoiceUtility = blend(float(share))
    elif plain in known:
        found = known[plain]
    else:
        raise RequestError(f"unknown utility {name!r}: choose from {', '.join(known)}, blend:0.5 (any share of NLL)")
    if objective == "mean":
        return found
    if isinstance(found, ChoiceUtility):
        raise RequestError(
            f"objective={objective} is over several texts, and {found.name} is a worth of items with options"
        )
    return worst_of_texts(found)
