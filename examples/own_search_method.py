"""A search method of your own, compared with two of the package's on one model.

A method is a function from what is asked for to a `Choice`. `search_method` checks the size and makes it
`search(game, n_remove, *, seed, budget, allowed, progress)`. To make it one that `prune --method NAME` knows, put it
into `layercoop_fast/search/NAME.py` (docs/extending.md).

    python examples/own_search_method.py [MODEL]
"""

from __future__ import annotations

import argparse

import numpy as np
from tiny_model import model_or_tiny

from layercoop_fast import ModelGame
from layercoop_fast.masks.types import Masks
from layercoop_fast.search.base import Asked, Choice, get_method, search_method


@search_method
def search(asked: Asked) -> Choice:
    """Hill climbing: begin with a drawn mask, take the best swap of a kept and a removed player while there is one."""
    game, allowed = asked.game, asked.allowed
    left = 200 if asked.budget is None else asked.budget
    rng = np.random.default_rng(asked.seed)
    best = np.ones(asked.n, dtype=np.bool_)
    best[rng.choice(asked.n, asked.n_remove, replace=False)] = False
    worth, measured = float(game(best[None])[0]), 1
    while True:
        swaps = [_swapped(best, i, j) for i in np.flatnonzero(best) for j in np.flatnonzero(~best)]
        swaps = [mask for mask in swaps if allowed is None or allowed.check(mask) is None][: left - measured]
        if not swaps:
            break
        worths = game(np.array(swaps))  # one call for all: masks share their common prefixes
        measured += len(swaps)
        asked.report("masks", measured, left)
        if worths.max() <= worth:
            break
        best, worth = swaps[int(worths.argmax())], float(worths.max())
    return Choice(best, "climbing", None, measured)


def _swapped(mask: Masks, i: int, j: int) -> Masks:
    other = mask.copy()
    other[i], other[j] = other[j], other[i]
    return other


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint folder or hub name; a tiny random model by default")
    parser.add_argument("--remove", type=int, default=2, help="how many layers go (default 2)")
    arguments = parser.parse_args()
    game = ModelGame.from_pretrained(model_or_tiny(arguments.model), "builtin", windows=6, tokens=64)
    for name, method in {"climbing": search, "sleb": get_method("sleb"), "ppl": get_method("ppl")}.items():
        choice = method(game, arguments.remove)
        removed = np.flatnonzero(~choice.mask).tolist()
        print(f"{name}: remove {removed}, worth {game(choice.mask[None])[0]:.4f}, {choice.n_masks} masks")


if __name__ == "__main__":
    main()
