"""Measure masks on many workers: local processes by default, or a Ray cluster. The worths are the same, bit for bit.

    python examples/evaluate_on_a_cluster.py                                  # two local processes, a tiny random model
    python examples/evaluate_on_a_cluster.py MODEL --workers ray              # the cluster that this machine is in
    python examples/evaluate_on_a_cluster.py MODEL --workers ray:10.0.0.1:6379 --store all.store

On a cluster the checkpoint must have the same path on every node. With a store a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import numpy as np
from tiny_model import model_or_tiny

from layercoop_fast import ModelGame, stratified_masks


def workers(text: str) -> int | str:
    """A number of local processes, or ray, or ray:HOST:PORT."""
    return int(text) if text.isdigit() else text


def main() -> None:
    """Measure, and say what sharing saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint folder or hub name; a tiny random model by default")
    parser.add_argument("--workers", type=workers, default=2, help="2, ray or ray:HOST:PORT (default 2)")
    parser.add_argument("--masks", type=int, default=100, help="how many masks (default 100)")
    parser.add_argument("--store", type=Path, help="file to keep measured masks in")
    parser.add_argument("--out", type=Path, help="a worths.npz to write")
    arguments = parser.parse_args()

    game = ModelGame.from_pretrained(
        model_or_tiny(arguments.model),
        "builtin",
        windows=6,
        tokens=64,
        workers=arguments.workers,
        store=arguments.store,
    )
    with closing(game):  # ends the workers, whatever happens
        masks = stratified_masks(game.n_players, arguments.masks, seed=0)  # bool [masks, players], True = kept
        measured = game.evaluate(masks)
        spent = game.evaluations
    print(f"{len(masks)} masks, {spent.unique} distinct ones measured")
    print(f"{spent.layer_evals} layer evaluations instead of {spent.layer_evals_naive}")
    print("best mask keeps:", np.flatnonzero(measured.masks[measured.worths.argmax()]).tolist())
    if arguments.out is not None:
        measured.save(arguments.out)
        print("written:", arguments.out)


if __name__ == "__main__":
    main()
