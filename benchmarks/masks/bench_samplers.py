"""How exact values are for the layer evaluations they cost, sampler by sampler.

    python benchmarks/masks/bench_samplers.py [--games layers] [--players 32] [--budgets 3000,10000] [--heads 0,8]
    python benchmarks/masks/bench_samplers.py --worths worths.npz        # a stand-in for the model they are of
    python benchmarks/masks/bench_samplers.py --model DIR --calibration my.txt [--store all.store] --seeds 4

A budget is in layer evaluations: distinct kept prefixes (what the engine does) and `heads` more for each distinct mask,
since the head is shared by none; 8 for a model of 135M parameters, 1 or less for large ones. Each sampler draws as many
masks as fit it, over and over with other seeds. From the worths of these the values are estimated,

    linear  `size_values`: least squares on the players, one constant a size
    steps   for chains through every size: what each player added as it arrived, as permutation estimators do
    pairs   a pairwise ridge (`RidgeSurrogate`), and the same least squares on what it predicts for fixed masks

and compared with those of the game over the same fixed masks (all there are, up to 12 players). `variance` is the
spread over the seeds, mean over players, times evaluations ÷ budget; `mse` holds the bias too. A gain is the figure of
the `strata` sampler over the row's own. Sizes are those around 0.8 n kept ("target"), the published strata, or
every one ("shapley"). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.game.worths import Worths
from layercoop_fast.masked.plan import count_evaluations
from layercoop_fast.masks.samplers import Sample, Sampler, chain_masks, independent_masks, subset_masks, two_stage_masks
from layercoop_fast.masks.stratified import all_masks, published_strata, stratified_masks
from layercoop_fast.masks.types import Floats, Game, Masks
from layercoop_fast.shapley.by_size import size_values
from layercoop_fast.surrogate.ridge import RidgeSurrogate

_FIXED = 20_000


def additive(n: int) -> Game:
    """Each player has its weight."""
    weights = np.random.default_rng(n).normal(size=n)
    return lambda masks: masks @ weights


def pairwise(n: int) -> Game:
    """Normal weights, 1 a player and 0.2 a pair."""
    rng = np.random.default_rng(n)
    return PairwiseGame(0.0, rng.normal(size=n), 0.2 * np.triu(rng.normal(size=(n, n)), 1))


def layers(n: int) -> Game:
    """Log worths as layers have them: the first and last players cost most, neighbours more together, and ruin is ruin.

    With x = Σ d_i over those removed + ¼ Σ over removed neighbours, v = −8 (1 − e^(−x/8)): nats are bounded.
    """
    damage = np.random.default_rng(n).gamma(2.0, 0.25, size=n)
    damage[0], damage[-1] = 4.0, 2.0

    def game(masks: Masks) -> Floats:
        removed = ~masks
        x = removed @ damage + 0.25 * (removed[:, 1:] & removed[:, :-1]).sum(axis=1)
        worths: Floats = -8 * (1 - np.exp(-x / 8))
        return worths

    return game


GAMES: dict[str, Callable[[int], Game]] = {each.__name__: each for each in (additive, pairwise, layers)}


def samplers(n: int) -> dict[str, Sampler]:
    """The samplers compared, by name: cuts are shares of the players, then suffixes a prefix."""
    found: dict[str, Sampler] = {"strata": independent_masks}
    for cut in (0.33, 0.5, 0.67):
        for suffixes in (2, 4):
            make = partial(two_stage_masks, cut=round(cut * n), suffixes=suffixes)
            found[f"two-stage {cut:g}x{suffixes}"] = make
    found["chains"] = chain_masks
    found["chains 0.5x2"] = partial(chain_masks, cut=n // 2, suffixes=2)
    found["subsets"] = subset_masks
    return found


def strata_of(estimand: str, n: int) -> list[int]:
    """Kept counts of each estimand."""
    target = round(0.8 * n)
    return {
        "target": [target + 1, target, target - 1],
        "published": published_strata(n),
        "shapley": list(range(n - 1, 0, -1)),
    }[estimand]


def draw(sampler: Sampler, name: str, n: int, n_masks: int, seed: int, estimand: str) -> Sample:
    """A sample for the estimand; `subsets` has strata of its own, and Shapley values take both ends as well."""
    strata = None if name == "subsets" else strata_of(estimand, n)
    found = sampler(n, n_masks, seed=[seed, 7], strata=strata)
    if estimand == "shapley":
        ends = np.array([[False] * n, [True] * n])
        last = found.clusters.max() + 1
        found = Sample(np.concatenate([found.masks, ends]), np.concatenate([found.clusters, [last, last + 1]]))
    return found


def cost(masks: Masks, heads: float) -> float:
    """Layer evaluations, the heads among them."""
    counts = count_evaluations(masks)
    return counts.plan + heads * counts.unique


def fitting(draw_masks: Callable[[int], Masks], budget: float, heads: float) -> int:
    """The most masks whose cost is within the budget, by bisection (within 1 %). `RequestError` where all would be."""
    low, high = 1, 2
    while cost(draw_masks(high), heads) <= budget:
        low, high = high, 2 * high
        if low > 20 * budget:
            raise RequestError(f"the sizes hold no {budget:g} layer evaluations")
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if cost(draw_masks(middle), heads) <= budget else (low, middle)
    return low


def linear(sample: Sample, worths: Floats, _: Masks) -> Floats:
    """Values from the masks themselves."""
    return size_values(sample.masks, worths).values


def pairs(sample: Sample, worths: Floats, fixed: Masks) -> Floats:
    """Values of a pairwise ridge over the fixed masks."""
    ridge = RidgeSurrogate.fit(sample.masks, worths, scale="identity")
    return size_values(fixed, ridge(fixed)).values


def steps(sample: Sample, worths: Floats, _: Masks) -> Floats:
    """Mean over whole orders of what each player adds; masks by size from n − 1 to 1, then none and all."""
    n = sample.masks.shape[1]
    n_orders = (len(worths) - 2) // (n - 1)
    paths = np.empty((n + 1, n_orders))
    paths[1:-1] = worths[:-2].reshape(n - 1, n_orders)
    paths[0], paths[-1] = worths[-1], worths[-2]
    masks = np.ones((n + 1, n_orders, n), dtype=np.bool_)
    masks[1:-1] = sample.masks[:-2].reshape(n - 1, n_orders, n)
    masks[-1] = False
    arrives = masks[:-1] & ~masks[1:]
    values: Floats = ((paths[:-1] - paths[1:])[:, :, None] * arrives).sum(axis=(0, 1)) / n_orders
    return values


ESTIMATORS = {"linear": linear, "steps": steps, "pairs": pairs}


def fixed_masks(estimand: str, n: int) -> Masks:
    """Masks that stand for all of the sizes: all there are, up to 12 players."""
    strata = strata_of(estimand, n) + ([0, n] if estimand == "shapley" else [])
    if n <= 12:
        every = all_masks(n)
        return every[np.isin(every.sum(axis=1), strata)]
    return stratified_masks(n, _FIXED, seed=[99, n], strata=strata)


def compare(
    chosen: tuple[str, ...],
    label: str,
    game: Game,
    n: int,
    estimand: str,
    budget: float,
    heads: float,
    seeds: int,
    pair_seeds: int,
) -> list[dict[str, Any]]:
    """One row a sampler and estimator."""
    fixed = fixed_masks(estimand, n)
    truth = None if label == "model" else size_values(fixed, np.asarray(game(fixed), dtype=np.float64)).values
    rows: list[dict[str, Any]] = []
    for name, sampler in samplers(n).items():
        if chosen and name not in chosen:
            continue
        try:
            n_masks = fitting(lambda m: draw(sampler, name, n, m, 0, estimand).masks, budget, heads)  # noqa: B023
        except RequestError:
            continue  # the budget is for more masks than there are
        orders = estimand == "shapley" and name.startswith("chains")
        if orders:
            n_masks -= n_masks % (2 * (n - 1))
        found: dict[str, list[Floats]] = {each: [] for each in ESTIMATORS}
        costs = []
        for seed in range(max(seeds, pair_seeds)):
            sample = draw(sampler, name, n, n_masks, seed, estimand)
            worths = np.asarray(game(sample.masks), dtype=np.float64)
            costs.append(cost(sample.masks, heads))
            for each, count in (("linear", seeds), ("steps", seeds * orders), ("pairs", pair_seeds)):
                if seed >= count or (name == "subsets" and each == "linear"):
                    continue  # its sizes are not those asked about: only a fit carries over
                try:
                    found[each].append(ESTIMATORS[each](sample, worths, fixed))
                except RequestError:
                    break  # too few masks of this size
        for each, values in found.items():
            if len(values) < 2:
                continue
            share = float(np.mean(costs)) / budget
            array = np.array(values)
            row = {"game": label, "players": n, "estimand": estimand, "estimator": each, "sampler": name}
            row |= {"budget": budget, "heads": heads, "masks": n_masks, "evaluations": float(np.mean(costs))}
            row |= {"variance": float(array.var(axis=0, ddof=1).mean()) * share}
            if truth is not None:  # the model itself is not asked about so many masks: there is a variance alone
                row |= {"mse": float(((array - truth) ** 2).mean()) * share, "of": float((truth**2).mean())}
            rows.append(row)
    for row in rows:
        kind = "linear" if row["estimator"] == "steps" else row["estimator"]
        base = next(each for each in rows if each["sampler"] == "strata" and each["estimator"] == kind)
        for figure in {"variance", "mse"} & row.keys():
            row[f"gain_{figure}"] = base[figure] / row[figure] if row[figure] > 1e-18 else None
        gains = [row[f"gain_{figure}"] for figure in ("variance", "mse") if figure in row]
        shown = "  ".join("exact" if gain is None else f"{gain:6.2f}" for gain in gains)
        print(
            f"{label:9} n {n:2} {estimand:9} {row['estimator']:6} heads {heads:g} budget {budget:6.0f} "
            f"{row['sampler']:16} masks {row['masks']:6} each {row['evaluations'] / row['masks']:5.2f}  "
            f"variance {row['variance']:.3e}  gain {shown}",
            flush=True,
        )
    return rows


def measured_game(path: Path) -> tuple[Game, int]:
    """Kriging through measured worths, in nats and from −15 up, as a game: a stand-in that has terms of every order.

    The covariance of two masks falls off with the damage of the players they differ in, e^(−4 Σ |w_i| / Σ |w|), w from
    a linear ridge. How well masks are predicted that were left out is printed.
    """
    measured = Worths.load(path)
    masks, rows = np.unique(measured.masks, axis=0, return_index=True)
    worths = np.maximum(-np.nan_to_num(measured.nll[rows], nan=np.inf, posinf=np.inf), -15.0)
    weight = np.abs(RidgeSurrogate.fit(masks, worths, order=1, scale="identity").weight)
    weight *= 4 / weight.sum()

    def covariance(left: Masks, right: Masks) -> Floats:
        a, b = left.astype(np.float64), right.astype(np.float64)
        between = (a @ weight)[:, None] + b @ weight - 2 * (a * weight) @ b.T
        answer: Floats = np.exp(-between)
        return answer

    inverse = np.linalg.inv(covariance(masks, masks) + 0.01 * np.eye(len(masks)))
    ones = inverse.sum(axis=1)
    mean = float(ones @ worths / ones.sum())
    factors = inverse @ (worths - mean)
    for least in (0, masks.shape[1] // 2):
        kept = masks.sum(axis=1) >= least
        error = (factors / np.diag(inverse))[kept]
        share = 1 - (error**2).mean() / worths[kept].var()
        print(f"stand-in: R² {share:.3f} on {kept.sum()} masks left out one by one that keep {least} or more")

    def game(asked: Masks) -> Floats:
        parts = [covariance(asked[low : low + 2000], masks) @ factors for low in range(0, len(asked), 2000)]
        return mean + np.concatenate(parts)

    return game, masks.shape[1]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default=",".join(GAMES))
    parser.add_argument("--players", default="12,32")
    parser.add_argument("--estimands", default="target,published,shapley")
    parser.add_argument("--budgets", default="3000,10000", help="layer evaluations; a twentieth of it up to 12 players")
    parser.add_argument("--heads", default="0,8", help="layer evaluations that a head counts for")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--pair-seeds", type=int, default=20, help="seeds of the pairwise ridge, which takes longer")
    parser.add_argument("--worths", type=Path, help="a worths.npz; what is fitted to it is the game")
    parser.add_argument("--model", help="checkpoint that is the game itself, in nats")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--samplers", help="only these, by commas")
    arguments = parser.parse_args()
    chosen = tuple(arguments.samplers.split(",")) if arguments.samplers else ()
    games: list[tuple[str, Game, int]] = []
    if arguments.model:
        from layercoop_fast.game.model_game import ModelGame

        model = ModelGame.from_pretrained(
            arguments.model,
            arguments.calibration,
            utility="nll",
            windows=arguments.windows,
            store=arguments.store,
        )
        games = [("model", model, model.n_players)]
    elif arguments.worths:
        games = [("stand-in", *measured_game(arguments.worths))]
    else:
        players = [int(part) for part in arguments.players.split(",")]
        games = [(name, GAMES[name](n), n) for name in arguments.games.split(",") for n in players]
    rows = []
    for label, game, n in games:
        for estimand in arguments.estimands.split(","):
            for heads in (float(part) for part in arguments.heads.split(",")):
                for budget in (float(part) for part in arguments.budgets.split(",")):
                    budget = budget / 20 if n <= 12 else budget
                    case = (estimand, budget, heads, arguments.seeds, arguments.pair_seeds)
                    rows += compare(chosen, label, game, n, *case)
    print(json.dumps({"benchmark": "samplers", "machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
