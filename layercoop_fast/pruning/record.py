"""`layercoop.json`: what `prune` found, as JSON can hold it (docs/contracts.md)."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from layercoop_fast._version import __version__
from layercoop_fast.engine.quantised import parameters_of
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.repair.fit import Repaired, repaired_windows
from layercoop_fast.search.base import Choice, finite_or_none, perplexity

SCHEMA = 1


def quality_of(game: ModelGame, pair: Masks, repaired: Repaired | None) -> dict[str, dict[str, Any]]:
    """Worth, NLL, perplexity and NLL by window of the full and the pruned model, as JSON can hold them.

    Where a repair is kept, the pruned model is the repaired one, and `unrepaired` holds its values before the repair.
    `pair` is bool [2, n]: the full mask and the chosen one.
    """
    measured = game.evaluate(pair)
    worths, nll, window_nll = measured.worths.tolist(), measured.nll.tolist(), measured.window_nll
    names = ["full", "pruned"]
    if repaired is not None and repaired.kept:
        worth, own, by_window = repaired_windows(game, repaired)
        worths, nll, names = [*worths, worth], [*nll, own], ["full", "unrepaired", "pruned"]
        window_nll = np.vstack([window_nll, by_window])
    return {
        "worth": {name: finite_or_none(value) for name, value in zip(names, worths, strict=True)},
        "nll": {name: finite_or_none(value) for name, value in zip(names, nll, strict=True)},
        "ppl": {name: perplexity(value) for name, value in zip(names, nll, strict=True)},
        **({"window_nll": _by_window(names, window_nll)} if game.n_windows else {}),
    }


def _by_window(names: Sequence[str], window_nll: Floats) -> dict[str, list[float | None]]:
    return {name: [finite_or_none(value) for value in windows] for name, windows in zip(names, window_nll, strict=True)}


def record_of(
    game: ModelGame,
    choice: Choice,
    quality: dict[str, Any],
    unseen: dict[str, Any] | None,
    seed: int,
) -> dict[str, Any]:
    """`layercoop.json`, all but the seconds, with a `cost` to be measured; the model's weights must be there."""
    units = game.masked.players.unit_masks(choice.mask[None])[0]
    label = game.masked.players.label
    scores = None if choice.scores is None else [finite_or_none(score) for score in choice.scores]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "model": game.checkpoint.name,
        "players": game.masked.players.kind,
        "n_players": game.n_players,
        "removed": [label(int(unit)) for unit in np.flatnonzero(~units)],
        "kept": [label(int(unit)) for unit in np.flatnonzero(units)],
        "method": choice.method,
        # Only the published procedure estimates contributions; what other methods rank by is in `scores`.
        "shapley": scores if choice.method == "official" else None,
        "scores": scores,
        "worth": quality["worth"],
        "nll": quality["nll"],
        "ppl": quality["ppl"],
        "window_nll": quality.get("window_nll"),
        "params": _parameters(game),
        "calibration": game.calibration.description,
        "evaluations": asdict(game.evaluations),
        "cost": None,
        "details": choice.details,
        "fingerprints": game.fingerprints,
        "seed": seed,
        "versions": {
            "layercoop_fast": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
        },
    }
    if unseen is not None:
        record["heldout"] = unseen
    return record


def _parameters(game: ModelGame) -> dict[str, Any]:
    """Parameters of the full model, tied ones once, and of each player."""
    alone = game.masked.players.unit_masks(~np.eye(game.n_players, dtype=np.bool_))
    players = [sum(game.masked.players.n_parameters(int(unit)) for unit in np.flatnonzero(~row)) for row in alone]
    return {"full": parameters_of(game.checkpoint.model.parameters()), "players": players}
