"""Losses over several texts, and how sure a choice is on so many windows."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.game.bootstrap import draw_windows, probability_better
from layercoop_fast.game.utility import UTILITIES, Utility, get_utility
from layercoop_fast.game.worths import Worths
from layercoop_fast.texts.domains import Domains, first_windows
from layercoop_fast.texts.layout import Layout

OF_WINDOW = [0, 1, 2, 0, 1, 2, 0, 2, 2]
WEIGHTS = [1.0, 2.0, 0.5]
DOMAINS = Domains(np.array(OF_WINDOW), np.array(WEIGHTS), ("a", "b", "c"))
W = len(OF_WINDOW)
RNG = np.random.default_rng(0)
NLL, KL, FULL = RNG.normal(4, 1, (5, W)), RNG.gamma(1, 1, (5, W)), RNG.normal(3, 1, W)


def by_text(row: np.ndarray, last: int = W) -> dict[int, float]:
    """The mean of each text, by hand."""
    return {
        text: float(np.mean([row[i] for i in range(last) if OF_WINDOW[i] == text])) for text in set(OF_WINDOW[:last])
    }


def weighted(row: np.ndarray, last: int = W) -> float:
    means = by_text(row, last)
    return sum(WEIGHTS[text] * mean for text, mean in means.items()) / sum(WEIGHTS[text] for text in means)


@pytest.mark.parametrize("last", [W, 6, 2])
def test_means_are_of_texts_and_not_of_windows(last: int) -> None:
    domains = DOMAINS.part(0, last)
    wanted = [weighted(row, last) for row in NLL]
    np.testing.assert_allclose(domains.mean(NLL[:, :last]), wanted, rtol=1e-12)
    np.testing.assert_allclose(domains.weighted(NLL[:, :last]).mean(axis=1), wanted, rtol=1e-12)
    np.testing.assert_allclose(domains.loss(NLL[:, :last], "worst"), [max(by_text(row, last).values()) for row in NLL])
    assert domains.mean(NLL[2:3, :last])[0] == domains.mean(NLL[:, :last])[2]  # not a bit by its company


def test_a_fingerprint_holds_texts_and_weights() -> None:
    found = json.loads(json.dumps({"text": "digest", **DOMAINS.as_json()}))
    again = Domains.of(found)
    assert again is not None
    assert again.of_window.tolist() == OF_WINDOW
    assert again.weights.tolist() == WEIGHTS
    assert Domains.of("digest") is None
    assert Domains.of({"options": [2]}) is None
    assert Layout.of(found) is None


@pytest.mark.parametrize("name", ["ppl_ratio", "nll", "kl", "blend:0.25"])
def test_worths_over_texts(name: str) -> None:
    calibration = {"text": "digest", **DOMAINS.as_json()}
    full = weighted(FULL)
    loss = {
        "kl": lambda nll, kl: kl,
        "blend:0.25": lambda nll, kl: 0.25 * nll + 0.75 * kl,
    }.get(name, lambda nll, kl: nll)
    worth = {"ppl_ratio": lambda rise: np.exp(-rise), "nll": lambda rise: -(full + rise)}.get(name, lambda rise: -rise)
    worths, nll = get_utility(name).judge(NLL, KL, FULL, calibration)
    np.testing.assert_allclose(nll, [weighted(row) for row in NLL], rtol=1e-12)
    mean = [worth(loss(weighted(row - FULL), weighted(kl))) for row, kl in zip(NLL, KL, strict=True)]
    np.testing.assert_allclose(worths, mean, rtol=1e-12)
    worths, _ = get_utility(f"{name}:worst").judge(NLL, KL, FULL, calibration)
    pairs = [(by_text(row - FULL), by_text(kl)) for row, kl in zip(NLL, KL, strict=True)]
    worst = [worth(max(loss(rise[text], kl[text]) for text in rise)) for rise, kl in pairs]
    np.testing.assert_allclose(worths, worst, rtol=1e-12)


def test_one_text_has_the_worths_it_had() -> None:
    for name, utility in UTILITIES.items():
        assert isinstance(utility, Utility)
        plain, nll = utility.judge(NLL, KL, FULL, "digest")
        np.testing.assert_array_equal(plain, utility.worth(NLL.mean(axis=1), KL.mean(axis=1), FULL.mean()))
        np.testing.assert_array_equal(nll, NLL.mean(axis=1))
        np.testing.assert_array_equal(get_utility(f"{name}:mean").judge(NLL, KL, FULL, "digest")[0], plain)


@pytest.mark.parametrize("name", ["ppl_ratio", "kl", "blend:0.3"])
def test_window_losses_add_up_to_the_loss(name: str) -> None:
    utility = get_utility(name)
    unmeasured = np.full_like(KL, np.nan) if name == "ppl_ratio" else KL
    losses = utility.window_losses(NLL, unmeasured, FULL, np.zeros(W))
    worths, _ = utility.judge(NLL, KL, FULL, "digest")
    np.testing.assert_allclose(losses.mean(axis=1), -np.log(worths) if name == "ppl_ratio" else -worths, rtol=1e-12)


def test_the_standard_error_is_of_each_text() -> None:
    columns = [[i for i in range(W) if OF_WINDOW[i] == text] for text in range(3)]
    wanted = [
        np.sqrt(
            sum(
                (weight / sum(WEIGHTS)) ** 2 * np.var(row[at], ddof=1) / len(at)
                for at, weight in zip(columns, WEIGHTS, strict=True)
            )
        )
        for row in NLL
    ]
    prints = {"calibration": {"text": "digest", **DOMAINS.as_json()}}
    masks, tokens = np.ones((5, 3), bool), np.full(W, 7)
    stderr = Worths(masks, NLL[:, 0], NLL.mean(axis=1), NLL, tokens, prints).nll_stderr
    np.testing.assert_allclose(stderr, wanted, rtol=1e-12)
    assert np.isnan(DOMAINS.part(0, 4).stderr(NLL[:, :4])).all()


def test_first_windows_hold_every_text() -> None:
    assert first_windows(0.3, 10, None) == 3
    assert first_windows(0.01, 10, None) == 1
    turns = Domains(np.tile(np.arange(4), 5), np.ones(4))
    assert [first_windows(share, 20, turns) for share in (0.01, 0.3, 1.0)] == [4, 8, 20]


def test_drawings_are_stratified() -> None:
    counts = draw_windows(DOMAINS, 50, np.random.default_rng(1))
    for text in range(3):
        of_text = counts[:, np.array(OF_WINDOW) == text]
        assert (of_text.sum(axis=1) == OF_WINDOW.count(text)).all()
        assert len(np.unique(of_text, axis=0)) > 1


def test_the_probability_is_that_of_the_normal_theory() -> None:
    rng = np.random.default_rng(2)
    best = rng.normal(0, 3, 60)
    other = best + rng.normal(0.05, 1, 60)
    difference = other - best
    wanted = NormalDist().cdf(-difference.mean() / (difference.std() / np.sqrt(60)))
    assert probability_better(best, other, rng=rng) == pytest.approx(wanted, abs=0.04)
    assert probability_better(best, best, rng=rng) == 0.5


def test_a_text_that_hardly_counts_hardly_decides() -> None:
    rng = np.random.default_rng(3)
    of_window = np.tile([0, 1], 20)
    # Better on the first text, worse on the second, by the same.
    best, other = rng.normal(0, 0.1, 40), np.where(of_window == 0, -1.0, 1.0) + rng.normal(0, 0.1, 40)
    chances = [
        probability_better(best, other, rng=rng, domains=Domains(of_window, np.array(weights)))
        for weights in ([1.0, 9.0], [9.0, 1.0])
    ]
    assert chances == [0.0, 1.0]
    even = Domains(of_window, np.array([9.0, 1.0]))
    assert probability_better(best, other, rng=rng, domains=even, objective="worst") == 0.0


def test_where_nothing_can_be_said() -> None:
    rng = np.random.default_rng(4)
    assert probability_better(np.zeros(1), np.ones(1), rng=rng) is None
    assert probability_better(np.zeros(3), np.array([0, np.inf, 1]), rng=rng) is None
    single = Domains(np.array([0, 0, 1]), np.ones(2))
    assert probability_better(np.zeros(3), np.ones(3), rng=rng, domains=single) is None


@pytest.mark.parametrize("name", ["blend:0", "blend:1", "blend:1.5"])
def test_a_blend_is_of_two(name: str) -> None:
    with pytest.raises(RequestError, match="is not a share of NLL between 0 and 1"):
        get_utility(name)
    assert get_utility("blend:.50").name == get_utility("blend:0.5").name == "blend:0.5"
    for unknown in ("blend:", "blend:x", "worst", "nll:best"):
        with pytest.raises(RequestError, match="unknown utility"):
            get_utility(unknown)
