"""How long a surrogate takes to fit, and how well it foretells worths that it has not seen.

    python benchmarks/surrogate/bench_fit.py [--worths worths.npz] [--masks 8000] [--players 32] [--repeats 3]

Time: 8 networks on masks in the published strata of a game of pairs with noise; the best of the repeats, the published
recipe and the closed-form references. Quality, where measured worths are given: R² on log worths, every mask
predicted by a fit to the other four fifths, over several ways to split them.
Ends in one JSON line. The worths of the figures in docs/performance.md are those of

    python -c "import numpy as np, layercoop_fast as l; np.save('masks.npy', l.stratified_masks(30, 600))"
    layercoop-fast evaluate MODEL --masks masks.npy --calibration novels.txt --out worths.npz
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

from layercoop_fast import PublishedSurrogate, RidgeSurrogate, Surrogate, stratified_masks
from layercoop_fast.game.worths import Worths
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.surrogate.pairs import finite_pairs
from layercoop_fast.surrogate.quality import r_squared

FOLDS = 5
Predictor = Callable[[Masks], Floats]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worths", type=Path, help="a worths.npz of perplexity ratios to judge the fits on")
    parser.add_argument("--masks", type=int, default=8000)
    parser.add_argument("--players", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    result: dict[str, Any] = {"benchmark": "surrogate/fit", "machine": machine()}
    result["seconds"] = times(arguments.masks, arguments.players, arguments.repeats)
    show(f"seconds, {arguments.masks} masks x {arguments.players} players", result["seconds"], "wall", "cpu", "thread")
    result["masks"], result["players"] = arguments.masks, arguments.players
    if arguments.worths is not None:
        measured = Worths.load(arguments.worths)
        masks, worths, dropped = finite_pairs(measured.masks, measured.worths)
        result["r2"] = qualities(masks, worths, arguments.repeats)
        result["r2_pairs"], result["r2_dropped"] = len(worths), dropped
        show(f"R² on log worths, {len(worths)} masks, {FOLDS}-fold", result["r2"], "mean", "min", "max")
    sys.stdout.write(json.dumps(result) + "\n")


def times(n_masks: int, n: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each fit, the best of the repeats (the published recipe once: it is slow).

    By the wall, of the processor in all threads, and in the calling thread alone: the last is what the wall would say
    of a fit that two free cores share.
    """
    masks = stratified_masks(n, n_masks, seed=0)
    worths = pairs_game(masks)
    fits: dict[str, tuple[Callable[[], object], int]] = {
        "ensemble of 8": (lambda: Surrogate.fit(masks, worths), repeats),
        "linear ridge": (lambda: RidgeSurrogate.fit(masks, worths, order=1), repeats),
        "pairwise ridge": (lambda: RidgeSurrogate.fit(masks, worths, order=2), repeats),
        "published recipe, 1 network": (lambda: PublishedSurrogate.fit(masks, worths), 1),
    }
    found = {}
    for name, (fit, count) in fits.items():
        taken = []
        for _ in range(count):
            before = time.perf_counter(), time.process_time(), time.thread_time()
            fit()
            after = time.perf_counter(), time.process_time(), time.thread_time()
            taken.append([round(b - a, 3) for a, b in zip(before, after, strict=True)])
        found[name] = dict(zip(("wall", "cpu", "thread"), min(taken), strict=True))
    return found


def pairs_game(masks: Masks) -> Floats:
    """exp of minus a cost a removed player, a cost a removed pair, and noise."""
    rng = np.random.default_rng(0)
    n = masks.shape[1]
    costs, pairs = rng.exponential(0.3, size=n), np.triu(0.05 * rng.normal(size=(n, n)), 1)
    removed = ~masks
    logs = -(removed @ costs) - ((removed @ pairs) * removed).sum(axis=1) + 0.05 * rng.normal(size=len(masks))
    worths: Floats = np.exp(logs)
    return worths


def qualities(masks: Masks, worths: Floats, repeats: int) -> dict[str, dict[str, float]]:
    """Cross-validated R² of each fit on log worths, over several ways to split the masks."""
    fits: dict[str, Callable[[Masks, Floats], Predictor]] = {
        "ensemble of 8": lambda m, w: Surrogate.fit(m, w).link_game,
        "linear ridge": lambda m, w: RidgeSurrogate.fit(m, w, order=1).values,
        "pairwise ridge": lambda m, w: RidgeSurrogate.fit(m, w, order=2).values,
        "published recipe, 1 network": lambda m, w: logs_of(PublishedSurrogate.fit(m, w)),
    }
    found = {}
    for name, fit in fits.items():
        scores = [cross_validated(fit, masks, worths, split) for split in range(repeats)]
        found[name] = {
            "mean": round(float(np.mean(scores)), 4),
            "min": round(min(scores), 4),
            "max": round(max(scores), 4),
        }
    return found


def cross_validated(fit: Callable[[Masks, Floats], Predictor], masks: Masks, worths: Floats, seed: int) -> float:
    """R² on log worths when each mask is predicted by a fit without its fifth; copies of a mask stay together."""
    distinct, which = np.unique(masks, axis=0, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(distinct))[which.reshape(-1)] % FOLDS
    predicted = np.empty(len(worths))
    for held_out in range(FOLDS):
        rest = fold != held_out
        predicted[~rest] = fit(masks[rest], worths[rest])(masks[~rest])
    return r_squared(np.log(worths), predicted)


def logs_of(surrogate: PublishedSurrogate) -> Predictor:
    """The logarithm of its worths: they lie between 0 and 1, and never are either."""
    return lambda masks: np.log(np.maximum(surrogate(masks), 1e-300))


def show(title: str, rows: dict[str, dict[str, float]], *names: str) -> None:
    """Print a table."""
    table = Table(title=title)
    table.add_column("fit")
    for name in names:
        table.add_column(name, justify="right")
    for fit, row in rows.items():
        table.add_row(fit, *(f"{row[name]:.3f}" for name in names))
    Console().print(table)


if __name__ == "__main__":
    main()
