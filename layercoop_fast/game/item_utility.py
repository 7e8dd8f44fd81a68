"""Worths from items with options: how often, and how clearly, the true option is the most likely one.

With l the log-probability of an option's tokens after its context, summed (nats), c the number of characters of the
option's text and t the true option of an item, a mask's worth is the mean over the items of

    accuracy        1 where t has the largest l, else 0                       lm-eval's acc
    accuracy_norm   1 where t has the largest l / c, else 0                   lm-eval's acc_norm
    margin          l(t) − the largest l of the others                        nats
    margin_norm     l(t) / c(t) − the largest l / c of the others             nats a character

The first of equal options counts as the largest, and where an option has no number (NaN) none does. Source: the LM
Evaluation Harness (EleutherAI), `process_results` of its multiple-choice tasks. A worth of your own is a function of
the log-probability of every token of every option, and of the labels: `choice_utility`.

What is measured and stored is the NLL of every token of every option; which of them belong together is in the game's
fingerprint of its items (`Layout`), so that a store or a `worths.npz` explains itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats
from layercoop_fast.texts.domains import Ints
from layercoop_fast.texts.layout import Layout


@dataclass(frozen=True)
class ChoiceUtility:
    """A named worth of items with options.

    Attributes:
        name: as the command line knows it.
        values: (log-probabilities of all tokens [M, N], layout) → what each item is worth [M, I]; a mask's worth is the
            mean over its items.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import ChoiceUtility
        >>> utility = ChoiceUtility("zero", lambda log_probs, layout: np.zeros((len(log_probs), 1)))
        >>> utility.name
        'zero'
    """

    name: str
    values: Callable[[Floats, Layout], Floats]
    needs_teacher: ClassVar[bool] = False
    of_items: ClassVar[bool] = True
    objective: ClassVar[str] = "mean"

    def judge(self, token_nll: Floats, kl: Floats, full_nll: Floats, calibration: object) -> tuple[Floats, Floats]:
        """Worths [M], and mean NLL [M] of the true options' tokens, of masks' NLL of every token [M, N].

        KL and the full model's NLL are not looked at; `calibration` is the fingerprint of the game's items.
        """
        layout = Layout.of(calibration)
        if layout is None:
            raise RequestError(f"the utility {self.name} is one of items with options, not of text")
        true_tokens = np.repeat(np.isin(np.arange(len(layout.tokens)), layout.true_options), layout.tokens)
        worths = self.values(-token_nll, layout).mean(axis=1)
        return np.asarray(worths, dtype=np.float64), np.asarray(token_nll[:, true_tokens].mean(axis=1))


def choice_utility(name: str, function: Callable[[list[list[Floats]], Ints], float | Floats]) -> ChoiceUtility:
    """A utility of your own.

    Args:
        name: identifies the function in fingerprints, so another function needs another name.
        function: (log-probabilities: of each item, of each of its options, float64 [tokens] in nats; labels int64 [I])
            → the worth of a mask, or float64 [I], the worth of each item.

    Examples:
        >>> from layercoop_fast import choice_utility
        >>> def mean_true(log_probs, labels):  # the true option's log-probability, mean over items
        ...     return sum(float(item[label].sum()) for item, label in zip(log_probs, labels)) / len(labels)
        >>> choice_utility("mean-true", mean_true).name  # give it to ModelGame as utility=
        'mean-true'
    """

    def values(log_probs: Floats, layout: Layout) -> Floats:
        rows = [np.atleast_1d(function(layout.nested(row), layout.labels)) for row in log_probs]
        return np.asarray(rows, dtype=np.float64).reshape(len(log_probs), -1)

    return ChoiceUtility(name, values)


def _accuracy(scores: Floats, layout: Layout) -> Floats:
    """Scores of options [M, O] → 1 where an item's true option has the first of its largest scores, [M, I]."""
    most = np.maximum.reduceat(scores, layout.first_options, axis=1)
    at_most = scores == np.repeat(most, layout.options, axis=1)
    order = np.where(at_most, np.arange(scores.shape[1]), scores.shape[1])
    first = np.minimum.reduceat(order, layout.first_options, axis=1)
    return np.asarray(first == layout.true_options, dtype=np.float64)


def _margin(scores: Floats, layout: Layout) -> Floats:
    """Scores of options [M, O] → by how much the true option's is above the best of the others, [M, I]."""
    others = scores.copy()
    others[:, layout.true_options] = -np.inf
    best = np.maximum.reduceat(others, layout.first_options, axis=1)
    return np.asarray(scores[:, layout.true_options] - best)


CHOICE_UTILITIES = {
    utility.name: utility
    for utility in (
        ChoiceUtility("accuracy", lambda log_probs, layout: _accuracy(layout.sums(log_probs), layout)),
        ChoiceUtility(
            "accuracy_norm", lambda log_probs, layout: _accuracy(layout.sums(log_probs) / layout.characters, layout)
        ),
        ChoiceUtility("margin", lambda log_probs, layout: _margin(layout.sums(log_probs), layout)),
        ChoiceUtility(
            "margin_norm", lambda log_probs, layout: _margin(layout.sums(log_probs) / layout.characters, layout)
        ),
    )
}


def item_values(utility: str, token_nll: Floats, calibration: Any) -> Floats | None:
    """What each item is worth under a named utility, [M, I]; None for other utilities and for text."""
    layout = Layout.of(calibration)
    if layout is None or utility not in CHOICE_UTILITIES:
        return None
    return CHOICE_UTILITIES[utility].values(-token_nll, layout)
