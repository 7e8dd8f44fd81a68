"""Several runs of one game that have nothing measured twice: each counts what it would cost by itself.

    game = ModelGame.from_pretrained(...)             # the source
    first, second = game.run(), game.run()
    sleb.search(first, 3), coop.search(second, 3)     # what one has measured costs the other no time
    first.evaluations, second.evaluations             # what each of them takes when nothing is known
    game.evaluations                                  # what was really spent

A run knows what it asked, and nothing else: so a search goes the same way as on a game of its own, and its counts are
those of that game with memory for every state. It measures nothing itself. Its source does, remembers everything (in
its store, where it has one), and so do the source's views, one for each other worth or part of the windows that any run
asks for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.masks.types import Floats

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame


@dataclass
class Kept:
    """What a source keeps for its runs beside the numbers of masks.

    Attributes:
        views: the source with another worth or on other windows, by fingerprint of the windows and name of the worth.
        rules: by name and arguments, what a rule said of the full model, and what that cost in layers times tokens.
    """

    views: dict[tuple[str, str], ModelGame] = field(default_factory=dict)
    rules: dict[tuple[object, ...], tuple[Floats, int]] = field(default_factory=dict)


def run_on(source: ModelGame) -> ModelGame:
    """The same game with nothing known and nothing counted, which has `source` measure what it is asked."""
    run = copy.copy(source)
    run.source, run.kept = source, Kept()
    run.evaluations = type(source.evaluations)()
    run.charged = (run.evaluations,)
    run._has_teacher = False
    run._known = KnownScores()
    return run


def asked_once(game: ModelGame, rule: Callable[..., Floats], *arguments: int, **options: Any) -> Floats:
    """`rule(game, *arguments, **options)`, which a run has from its source at the cost that it has there.

    The `options` make no difference to the answer.
    """
    source = game.source
    if source is None:
        return rule(game, *arguments, **options)
    key = (rule.__name__, *arguments)
    if key not in source.kept.rules:
        before = source.evaluations.token_evals
        found = rule(source, *arguments, **options)
        source.kept.rules[key] = found, source.evaluations.token_evals - before
    found, cost = source.kept.rules[key]
    for counts in game.charged:
        counts.token_evals += cost
    copied: Floats = found.copy()
    return copied
