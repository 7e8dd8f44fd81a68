"""Worths: from how well a masked model predicts the calibration tokens to one number a mask.

With q_m(·|t) the masked model's next-token distribution after position t, x the tokens, S the scored positions (every
token of a window but its first) and `full` the model with all its layers:

    nll(m) = −1/|S| Σ_t log q_m(x_{t+1} | t)                           nats a token
    kl(m)  =  1/|S| Σ_t Σ_v q_full(v|t) (log q_full(v|t) − log q_m(v|t))    nats a token, exact over the vocabulary

    ppl_ratio   exp(nll(full) − nll(m)) = ppl(full) / ppl(m)           the published worth, in [0, about 1]
    nll         −nll(m)
    kl          −kl(m)

A model that breaks down may give NaN or infinity; such worths are carried as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.game.choice_utility import CHOICE_UTILITIES, ChoiceUtility

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Utility:
    """A named worth.

    Attributes:
        name: as the command line knows it.
        needs_teacher: whether the full model's distribution is compared with (`kl` is then measured).
        worth: (nll [M], kl [M], nll of the full model) → worths [M]; `kl` holds NaN where it was not measured.
    """

    name: str
    needs_teacher: bool
    worth: Callable[[Floats, Floats, float], Floats]

    def judge(self, window_nll: Floats, kl: Floats, full_nll: Floats, calibration: object) -> tuple[Floats, Floats]:
        """Worths [M] and mean NLL [M] of masks' NLL [M, W], KL [M], and the full model's NLL [W].

        `calibration` is the fingerprint of the game's text.
        """
        if isinstance(calibration, Mapping):
            raise RequestError(
                f"the utility {self.name} is one of text; for items with options choose from "
                f"{', '.join(CHOICE_UTILITIES)}"
            )
        nll = window_nll.mean(axis=1)
        return np.asarray(self.worth(nll, kl, float(full_nll.mean())), dtype=np.float64), nll


UTILITIES = {
    utility.name: utility
    for utility in (
        Utility("ppl_ratio", False, lambda nll, kl, full: np.exp(full - nll)),
        Utility("nll", False, lambda nll, kl, full: -nll),
        Utility("kl", True, lambda nll, kl, full: -kl),
    )
}


def get_utility(utility: str | Utility | ChoiceUtility) -> Utility | ChoiceUtility:
    """Look a utility up by name; one made by the user passes through. `RequestError` names those there are."""
    if isinstance(utility, (Utility, ChoiceUtility)):
        return utility
    known: dict[str, Utility | ChoiceUtility] = {**UTILITIES, **CHOICE_UTILITIES}
    if utility not in known:
        raise RequestError(f"unknown utility {utility!r}: choose from {', '.join(known)}")
    return known[utility]


def token_nll(logits: Tensor, ids: Tensor) -> Tensor:
    """−log q(next token): logits [B, T, V] (any float dtype), ids int64 [B, T] → fp32 [B, T−1].

    Window by window: the fp32 copy of one window's logits still fits a processor's cache, that of many does not
    (docs/performance.md).
    """
    rows = [
        torch.nn.functional.cross_entropy(window[:-1].float(), tokens[1:], reduction="none")
        for window, tokens in zip(logits, ids, strict=True)
    ]
    return torch.stack(rows)


def token_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) after each scored position: logits [B, T, V] both (any float dtype) → fp32 [B, T−1]."""
    rows = []
    for p, q in zip(teacher, student, strict=True):
        log_p, log_q = p[:-1].float().log_softmax(-1), q[:-1].float().log_softmax(-1)
        rows.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.stack(rows)
