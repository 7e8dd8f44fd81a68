"""A worth of your own: from what a masked model does on the calibration text to one number for each mask.

Here a mask is worth its worst window, not its mean: exp of minus the largest rise of a window's NLL. Two forms:

- a `Utility`, from the mean NLL and the mean KL divergence of each mask: `prune`, searches, stores take it;
- a game, which is any callable from bool [M, n] to float64 [M]: searches and estimators take it.

    python examples/own_utility.py [MODEL]
"""

from __future__ import annotations

import argparse

import numpy as np
from tiny_model import model_or_tiny

from layercoop_fast import ModelGame
from layercoop_fast.game.utility import Utility
from layercoop_fast.search.base import get_method

# (mean NLL [M], mean KL [M], NLL of the full model) → worths [M]. The name stands for the function in fingerprints:
# another function needs another name. `needs_teacher` makes the game measure the KL divergence from the full model.
HALF_AND_HALF = Utility(
    "half and half", needs_teacher=True, worth=lambda nll, kl, full: np.exp(-0.5 * (nll - full) - 0.5 * kl)
)


class WorstWindow:
    """A game on another game: the worst window decides."""

    def __init__(self, game: ModelGame) -> None:
        self.game = game
        self.n_players = game.n_players
        self.full = game.evaluate(np.ones((1, game.n_players), dtype=bool)).window_nll  # float64 [1, windows]

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        """bool [M, n] → float64 [M]."""
        masks = np.atleast_2d(masks)  # searches may ask for a single mask
        return np.exp(-(self.game.evaluate(masks).window_nll - self.full).max(axis=1))


def main() -> None:
    """Choose by three worths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint folder or hub name; a tiny random model by default")
    parser.add_argument("--remove", type=int, default=2, help="how many layers go (default 2)")
    arguments = parser.parse_args()
    model = model_or_tiny(arguments.model)

    game = ModelGame.from_pretrained(model, "builtin", windows=6, tokens=64)
    greedy = get_method("sleb")
    games = {"ppl_ratio": game, "half and half": game.with_utility(HALF_AND_HALF), "worst window": WorstWindow(game)}
    for name, each in games.items():
        choice = greedy(each, arguments.remove)
        print(f"{name}: remove {np.flatnonzero(~choice.mask).tolist()}, worth {each(choice.mask[None])[0]:.4f}")
    print("masks measured:", game.evaluations.unique)


if __name__ == "__main__":
    main()
