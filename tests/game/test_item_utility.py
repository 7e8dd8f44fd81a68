"""Worths of items: the definitions on numbers worked out by hand, and arrangements of them."""

from __future__ import annotations

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.game.item_utility import CHOICE_UTILITIES, ChoiceUtility, choice_utility
from layercoop_fast.game.utility import UTILITIES
from layercoop_fast.texts.layout import Layout

# Two items: of 2 and of 3 options, the true ones the second and the first.
LAYOUT = Layout(
    options=np.array([2, 3]),
    labels=np.array([1, 0]),
    tokens=np.array([1, 2, 2, 1, 1]),
    characters=np.array([2, 8, 4, 2, 3]),
)
# Sums by option: -2, -3 | -4, -2, -6; a character: -1, -0.375 | -1, -1, -2.
LOG_PROBS = np.array([[-2.0, -1.0, -2.0, -1.5, -2.5, -2.0, -6.0]])


def worth(name: str, log_probs: np.ndarray = LOG_PROBS) -> float:
    nothing = np.full(len(log_probs), np.nan)
    worths, _ = CHOICE_UTILITIES[name].judge(-log_probs, nothing, -log_probs[0], LAYOUT.as_json())
    return float(worths[0])


def test_definitions_by_hand() -> None:
    assert worth("accuracy") == 0.0  # -2 > -3, and -2 > -4
    assert worth("accuracy_norm") == 1.0  # -0.375 > -1; -1 = -1 > -2, and the first of equal ones counts
    assert worth("margin") == pytest.approx(((-3 + 2) + (-4 + 2)) / 2)
    assert worth("margin_norm") == pytest.approx(((-0.375 + 1) + (-1 + 1)) / 2)


def test_items_as_the_harness_judges_them() -> None:
    """Its `process_results`, item by item, on random numbers."""
    generator = np.random.default_rng(0)
    options = generator.integers(2, 6, 40)
    labels = np.array([generator.integers(0, count) for count in options])
    tokens = generator.integers(1, 5, options.sum())
    layout = Layout(options, labels, tokens, generator.integers(1, 20, options.sum()))
    log_probs = -generator.exponential(1.0, (3, tokens.sum())).round(1)  # ties happen
    found = {name: utility.values(log_probs, layout) for name, utility in CHOICE_UTILITIES.items()}
    for mask, row in enumerate(log_probs):
        first = 0
        for item, by_option in enumerate(layout.nested(row)):
            sums = np.array([option.sum() for option in by_option])
            lengths = layout.characters[first : first + len(sums)]
            first += len(sums)
            for scores, ending in ((sums, ""), (sums / lengths, "_norm")):
                assert found["accuracy" + ending][mask, item] == float(np.argmax(scores) == labels[item])
                others = np.delete(scores, labels[item]).max()
                assert found["margin" + ending][mask, item] == pytest.approx(scores[labels[item]] - others, abs=1e-12)


def test_nll_is_that_of_the_true_options() -> None:
    _, nll = CHOICE_UTILITIES["accuracy"].judge(-LOG_PROBS, np.empty(1), np.empty(7), LAYOUT.as_json())
    assert nll[0] == pytest.approx((1 + 2 + 1.5 + 2.5) / 4)


def test_a_mask_that_breaks_the_model_is_right_about_nothing() -> None:
    broken = LOG_PROBS.copy()
    broken[0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        assert worth("accuracy_norm", broken) == 0.5
        assert np.isnan(worth("margin", broken))


def test_a_utility_of_ones_own() -> None:
    def first_tokens(log_probs: list[list[np.ndarray]], labels: np.ndarray) -> np.ndarray:
        return np.array([item[label][0] for item, label in zip(log_probs, labels, strict=True)])

    by_item = choice_utility("first", first_tokens)
    whole = choice_utility("lowest", lambda log_probs, labels: min(float(o.min()) for i in log_probs for o in i))
    for utility, expected in ((by_item, (-1.0 - 1.5) / 2), (whole, -6.0)):
        worths, _ = utility.judge(-LOG_PROBS, np.empty(1), np.empty(7), LAYOUT.as_json())
        assert worths.tolist() == [expected]


def test_text_and_items_are_not_mixed_up() -> None:
    with pytest.raises(RequestError, match="the utility accuracy is one of items with options, not of text"):
        CHOICE_UTILITIES["accuracy"].judge(-LOG_PROBS, np.empty(1), np.empty(7), "a digest")
    with pytest.raises(RequestError, match=r"the utility nll is one of text; for items .* accuracy, accuracy_norm"):
        UTILITIES["nll"].judge(-LOG_PROBS, np.empty(1), np.empty(7), LAYOUT.as_json())
    assert isinstance(CHOICE_UTILITIES["margin"], ChoiceUtility)


def test_a_layout_goes_through_json() -> None:
    again = Layout.of({"items": "digest", **LAYOUT.as_json()})
    assert again is not None
    assert again.as_json() == LAYOUT.as_json()
    assert Layout.of("digest") is None
    assert Layout.of(None) is None
