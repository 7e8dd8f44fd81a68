"""Shapley values, interactions and best masks from a worths.npz: no model is needed once masks are measured.

python examples/shapley_from_worths.py                          # measures a tiny random model first
python examples/shapley_from_worths.py --model MODEL            # measures yours first
python examples/shapley_from_worths.py --worths worths.npz      # as `layercoop-fast evaluate` wrote it
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from tiny_model import model_or_tiny

from layercoop_fast import ModelGame, Surrogate, Worths, enumerate_masks, stratified_masks


def measure(model: str, count: int, out: Path) -> None:
    """Measure `count` masks of every size, so that a surrogate need not extrapolate, and save them."""
    game = ModelGame.from_pretrained(model, "builtin", windows=6, tokens=64)
    masks = stratified_masks(game.n_players, count, strata=range(game.n_players + 1), seed=0)  # bool [count, n]
    game.evaluate(masks).save(out)


def main() -> None:
    """Print values with the surrogate's quality, the strongest interactions and the best mask of each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worths", type=Path, help="a worths.npz")
    parser.add_argument("--model", help="or the model to measure; a tiny random one by default")
    parser.add_argument("--masks", type=int, default=200, help="how many masks to measure (default 200)")
    arguments = parser.parse_args()
    file = arguments.worths
    if file is None:
        file = Path(tempfile.mkdtemp(prefix="worths-")) / "worths.npz"
        measure(model_or_tiny(arguments.model), arguments.masks, file)

    measured = Worths.load(file)
    surrogate = Surrogate.fit(measured.masks, measured.worths)
    print("R² on masks that the fit did not see:", surrogate.quality.inside.r2)

    # All 2^n masks of the surrogate, up to 36 players: exact values of it, with no sampling.
    every = enumerate_masks(surrogate, interactions=True, top=1)
    values = every.shapley()  # float64 [n]
    for player in np.argsort(values):
        print(f"player {player}: {values[player]:+.4f}")

    pairs = np.triu(np.abs(every.sii()), k=1)  # float64 [n, n], Shapley interaction index
    i, j = np.unravel_index(int(pairs.argmax()), pairs.shape)
    print(f"strongest interaction: {i} and {j}, {every.sii()[i, j]:+.4f}")
    for kept in range(len(values) - 1, 0, -1):
        print(f"best {kept} to keep:", np.flatnonzero(every.best[kept].masks[0]).tolist())


if __name__ == "__main__":
    main()
