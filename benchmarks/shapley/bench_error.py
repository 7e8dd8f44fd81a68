"""How far estimated Shapley values are from the true ones, against masks asked and against seconds.

    python benchmarks/shapley/bench_error.py [--players 12,16,32] [--per-player 8,32,128] [--plot out.html]

Every game has known values at any number of players. Ours are compared with those of shapiq and SHAP where they are
installed, all on the same games, budgets and seeds, one thread (set OMP_NUM_THREADS=1 too). The error is the root mean
square over players, relative to that of the true values, averaged over the seeds. Seconds are those of the estimator
and the game together; these games cost next to nothing, so they show the estimator's own cost. `verdicts` counts the
peers' rows (game, players, budget, estimator) that ours are ahead of, or within one standard error of: `regression`
alone at equal masks; the best of ours at equal masks; the best of ours, of any budget, within the peer's seconds. For
that last one the cheap ones of ours also run at four times the largest budget, which games this cheap allow. The last
line is JSON. A plot (needs plotly) shows error against seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.types import Floats, Game, Masks
from layercoop_fast.shapley.interop import single_masks
from layercoop_fast.shapley.permutation import shapley_values
from layercoop_fast.shapley.regression import kernel_shap

Estimator = Callable[[Game, int, int, int], Floats]
"""`estimator(game, n, budget, seed)` returns values `float64[n]`."""


def additive(n: int, rng: np.random.Generator) -> tuple[Game, Floats]:
    game = PairwiseGame(0.0, rng.normal(size=n), np.zeros((n, n)))
    return game, game.shapley()


def pairwise(n: int, rng: np.random.Generator) -> tuple[Game, Floats]:
    game = PairwiseGame(0.0, rng.normal(size=n), np.triu(rng.normal(size=(n, n)), 1) / np.sqrt(n))
    return game, game.shapley()


def glove(n: int, rng: np.random.Generator) -> tuple[Game, Floats]:
    """v = min(left gloves, right gloves), a third of them left: a pair is worth 1."""
    left = n // 3

    def value(own: int, other: int) -> float:
        """A player adds 1 where, of those before it, fewer are of its own side than of the other."""
        return sum(
            comb(own - 1, a) * comb(other, b) / (n * comb(n - 1, a + b))
            for a in range(own)
            for b in range(a + 1, other + 1)
        )

    truth = np.repeat([value(left, n - left), value(n - left, left)], [left, n - left])
    return lambda masks: np.minimum(masks[:, :left].sum(axis=1), masks[:, left:].sum(axis=1)).astype(float), truth


def airport(n: int, rng: np.random.Generator) -> tuple[Game, Floats]:
    """v = the dearest runway any of the players needs; each stretch is shared by those who use it."""
    costs = np.sort(rng.gamma(2.0, size=n))
    return lambda masks: (masks * costs).max(axis=1), np.cumsum(np.diff(costs, prepend=0) / np.arange(n, 0, -1))


def sparse(n: int, rng: np.random.Generator) -> tuple[Game, Floats]:
    """3n random terms: each is won where all of its 1 to 5 players are there, who share it alike."""
    terms = [rng.choice(n, size=rng.integers(1, 6), replace=False) for _ in range(3 * n)]
    worths = rng.normal(size=len(terms))
    truth = np.zeros(n)
    for players, worth in zip(terms, worths, strict=True):
        truth[players] += worth / len(players)
    return lambda masks: np.stack([masks[:, players].all(axis=1) for players in terms], axis=1) @ worths, truth


def decay(n: int, rng: np.random.Generator) -> tuple[Game, Floats]:
    """v = Π of q_i over those left out, as perplexity ratios behave: φ_i = (1 − q_i) ∫₀¹ Π_{j≠i} (t + (1 − t) q_j) dt.

    The integral is over the share t of players that came before; Gauss–Legendre with n nodes is exact for it.
    """
    damage = rng.gamma(1.0, 0.3, size=n)
    left = np.exp(-damage)
    nodes, weights = np.polynomial.legendre.leggauss(n)
    t = (nodes[:, None] + 1) / 2
    factors = t + (1 - t) * left
    truth = [(1 - left[i]) * (weights / 2 @ np.delete(factors, i, axis=1).prod(axis=1)) for i in range(n)]
    return lambda masks: np.exp(-(~masks @ damage)), np.array(truth)


GAMES = {game.__name__: game for game in (additive, pairwise, glove, airport, sparse, decay)}


def permutations(game: Game, n: int, budget: int, seed: int) -> Floats:
    count = max(4, (budget - 2) // (n - 1) // 2 * 2)
    return shapley_values(game, n_players=n, n_permutations=count, seed=seed).values


def circles(game: Game, n: int, budget: int, seed: int) -> Floats:
    count = max(2, (budget - 2) // (n * (n - 1)))
    return shapley_values(game, n_players=n, n_permutations=2 * n * count, stratified=True, seed=seed).values


def regression(game: Game, n: int, budget: int, seed: int) -> Floats:
    return kernel_shap(game, n_players=n, budget=budget, seed=seed).values


def plain_regression(game: Game, n: int, budget: int, seed: int) -> Floats:
    return kernel_shap(game, n_players=n, budget=budget, seed=seed, interactions=False).values


OURS: dict[str, Estimator] = {each.__name__: each for each in (regression, plain_regression, permutations, circles)}


def peers() -> dict[str, Estimator]:
    """The estimators of shapiq and SHAP by name, as far as they are installed."""
    return {**_shapiq(), **_shap()}


def _shapiq() -> dict[str, Estimator]:
    try:
        import shapiq
    except ImportError:
        return {}

    def run(make: Callable[[int, int], Any]) -> Estimator:
        return lambda game, n, budget, seed: make(n, seed).approximate(budget, single_masks(game)).get_n_order_values(1)

    return {
        "KernelSHAP": run(lambda n, seed: shapiq.KernelSHAP(n, random_state=seed)),
        "KernelSHAP paired": run(lambda n, seed: shapiq.KernelSHAP(n, pairing_trick=True, random_state=seed)),
        "kADDSHAP": run(lambda n, seed: shapiq.kADDSHAP(n, max_order=2, pairing_trick=True, random_state=seed)),
        "PermutationSamplingSV": run(lambda n, seed: shapiq.PermutationSamplingSV(n, random_state=seed)),
        "StratifiedSamplingSV": run(lambda n, seed: shapiq.StratifiedSamplingSV(n, random_state=seed)),
        "OwenSamplingSV": run(lambda n, seed: shapiq.OwenSamplingSV(n, random_state=seed)),
    }


def _shap() -> dict[str, Estimator]:
    """SHAP explains a function of features: here present or absent, all absent in the background."""
    try:
        import shap
    except ImportError:
        return {}

    def kernel(game: Game, n: int, budget: int, seed: int) -> Floats:
        np.random.seed(seed)  # noqa: NPY002 (SHAP draws from the global stream)
        explainer = shap.KernelExplainer(lambda x: game(x != 0), np.zeros((1, n)))
        values = explainer.shap_values(np.ones((1, n)), nsamples=budget - 2, l1_reg=False, silent=True)
        return np.asarray(values, dtype=np.float64).reshape(n)

    def permutation(game: Game, n: int, budget: int, seed: int) -> Floats:
        masker = shap.maskers.Independent(np.zeros((1, n)))
        explainer = shap.PermutationExplainer(lambda x: game(x != 0), masker, seed=seed)
        values = explainer.shap_values(np.ones((1, n)), npermutations=max(1, budget // n - 1), silent=True)
        return np.asarray(values, dtype=np.float64).reshape(n)

    return {"SHAP Kernel": kernel, "SHAP Permutation": permutation}


class Counted:
    """A game that counts the masks asked of it."""

    def __init__(self, game: Game) -> None:
        self.game, self.asked = game, 0

    def __call__(self, masks: Masks) -> Floats:
        """Answer, and count."""
        self.asked += len(masks)
        return self.game(masks)


@dataclass(frozen=True)
class Row:
    """One estimator on one game under one budget, over all seeds."""

    game: str
    players: int
    budget: int
    estimator: str
    ours: bool
    masks: float
    """Asked in the mean; may be above the budget where an estimator's least sample is."""
    error: float
    error_stderr: float
    seconds: float
    """Median."""


def measure(name: str, n: int, budget: int, estimator: str, function: Estimator, ours: bool, repeats: int) -> Row:
    game, truth = GAMES[name](n, np.random.default_rng(n))
    errors, seconds, masks = [], [], []
    for seed in range(repeats):
        counted = Counted(game)
        start = time.perf_counter()
        values = function(counted, n, budget, seed)
        seconds.append(time.perf_counter() - start)
        errors.append(float(np.sqrt(np.mean((values - truth) ** 2) / np.mean(truth**2))))
        masks.append(counted.asked)
    spread = float(np.std(errors, ddof=1) / np.sqrt(repeats))
    return Row(
        name,
        n,
        budget,
        estimator,
        ours,
        float(np.mean(masks)),
        float(np.mean(errors)),
        spread,
        float(np.median(seconds)),
    )


ROUNDING = 1e-9
"""Errors below this count as none: an exact answer is not beaten by another's last digits."""


def verdicts(rows: list[Row]) -> dict[str, Any]:
    """How many rows of the peers ours are not behind, and by which rows they are."""
    kinds: dict[str, Callable[[Row, Row], bool]] = {
        "regression_equal_masks": lambda own, peer: own.estimator == "regression" and own.masks <= peer.budget,
        "best_equal_masks": lambda own, peer: own.masks <= peer.budget + 2,
        "best_equal_time": lambda own, peer: own.seconds <= peer.seconds,
    }
    answer: dict[str, Any] = {"peer_rows": sum(not row.ours for row in rows)}
    for kind, comparable in kinds.items():
        behind, ratios = [], []
        for peer in (row for row in rows if not row.ours):
            fair = [row for row in rows if row.ours and (row.game, row.players) == (peer.game, peer.players)]
            fair = [row for row in fair if comparable(row, peer)]
            own = min(fair, key=lambda row: row.error, default=None)
            slack = max(ROUNDING, math.hypot(peer.error_stderr, own.error_stderr)) if own else ROUNDING
            if own is None or own.error > peer.error + slack:
                behind.append([peer.game, peer.players, peer.budget, peer.estimator, peer.error, own and own.error])
            elif min(own.error, peer.error) > ROUNDING:
                ratios.append(peer.error / own.error)
        answer[kind] = {
            "ahead_or_level": answer["peer_rows"] - len(behind),
            "median_ratio": float(np.median(ratios)) if ratios else None,
            "behind": behind,
        }
    return answer


def plot(rows: list[Row], path: str) -> None:
    """Error against seconds, a panel a game at the most players; both axes logarithmic."""
    import plotly.colors
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    most = max(row.players for row in rows)
    names = sorted({row.game for row in rows})
    estimators = list(dict.fromkeys(row.estimator for row in rows))
    figure = make_subplots(rows=2, cols=(len(names) + 1) // 2, subplot_titles=[f"{name}, n = {most}" for name in names])
    colours = plotly.colors.qualitative.Dark24
    for panel, name in enumerate(names):
        for estimator, colour in zip(estimators, colours, strict=False):
            line = [r for r in rows if (r.game, r.players, r.estimator) == (name, most, estimator)]
            figure.add_trace(
                go.Scatter(
                    x=[row.seconds for row in line],
                    y=[max(row.error, 1e-16) for row in line],
                    name=estimator,
                    legendgroup=estimator,
                    showlegend=panel == 0,
                    line={"color": colour, "dash": "solid" if line[0].ours else "dot"},
                ),
                row=panel % 2 + 1,
                col=panel // 2 + 1,
            )
    figure.update_xaxes(type="log", title="seconds")
    figure.update_yaxes(type="log", title="relative error")
    figure.write_html(path, include_plotlyjs=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default=",".join(GAMES))
    parser.add_argument("--players", default="12,16,32")
    parser.add_argument("--per-player", default="8,32,128", help="budgets, in masks a player")
    parser.add_argument("--repeats", type=int, default=5, help="seeds, at least 2")
    parser.add_argument("--plot", help="HTML file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # peers warn about budgets; ours raise

    rows: list[Row] = []
    estimators = [(name, each, True) for name, each in OURS.items()]
    cheap = [each for each in estimators if each[0] != "regression"]
    estimators += [(name, each, False) for name, each in peers().items()]
    sizes = [int(part) for part in arguments.per_player.split(",")]
    for n in (int(part) for part in arguments.players.split(",")):
        for budget in (n * size for size in [*sizes, 4 * max(sizes)]):
            for game in arguments.games.split(","):
                for name, each, ours in estimators if budget <= n * max(sizes) else cheap:
                    rows.append(measure(game, n, budget, name, each, ours, arguments.repeats))
                    row = rows[-1]
                    print(
                        f"{game:9} n {n:2} budget {budget:5} {name:22} masks {row.masks:7.0f}  "
                        f"error {row.error:.2e} ± {row.error_stderr:.0e}  {row.seconds:.2e} s"
                    )
    if arguments.plot:
        plot(rows, arguments.plot)
    installed = {}
    for name in ("shapiq", "shap"):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    result = {
        "benchmark": "shapley_error",
        "machine": machine(),
        "peers": installed,
        "repeats": arguments.repeats,
        "verdicts": verdicts(rows),
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
