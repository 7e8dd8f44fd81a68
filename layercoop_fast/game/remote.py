"""A game whose masks are measured by workers: what they are told, and what is made of their answers."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch

from layercoop_fast.errors import RequestError
from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.game.store import mask_key
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Masks
from layercoop_fast.texts.items import Items
from layercoop_fast.workers.cut import Task, cut_masks
from layercoop_fast.workers.dispatch import Workers

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame


def opening_of(
    name: str, *, dtype: str | torch.dtype, device: str, trust_remote_code: bool, blocks: str | None
) -> dict[str, Any]:
    """How workers open a checkpoint: the arguments of `open_checkpoint` and `Skeleton`, fit for JSON.

    Raises `RequestError` for a device that workers cannot share out.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda") or device != kind:
        raise RequestError(f"--device {device!r} with --workers: write cpu, or cuda for a GPU each")
    return {
        "name": os.path.abspath(name) if os.path.exists(name) else name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "trust_remote_code": trust_remote_code,
        "blocks": blocks,
    }


def open_workers(game: ModelGame) -> Workers:
    """The game's workers, once they play the same game. What they need not be told is what they open."""
    workers = game.workers
    assert workers is not None
    players = game.players
    about: dict[str, Any] = {
        "players": {"kind": players.kind, "groups": players.groups, "halves": players.sublayers is not None},
        "utility": game.utility.name,
        "teacher": game.utility.needs_teacher,
        "block_path": game.block_path,
        "score_every": game.windows.score_every,
        "memory": game.memory,
        "domains": None if game.domains is None else game.domains.as_json(),
        "choices": game.calibration.as_json() if isinstance(game.calibration, Items) else None,
    }
    workers.open(about, ids=game.calibration.ids.cpu().numpy())
    return workers


def numerics_of_workers(game: ModelGame, own: dict[str, Any]) -> dict[str, Any]:
    """The numerics of the workers' worths, once it is sure that they play the game of these fingerprints.

    Raises `RequestError` where they opened another model: files that differ between machines, or weights that were
    changed after they were opened here.
    """
    theirs = open_workers(game).fingerprints
    _check_same(game, own, theirs)
    numerics: dict[str, Any] = theirs["numerics"]
    return numerics


def _check_same(game: ModelGame, own: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise `RequestError` unless the fingerprints of the workers are those of the game."""
    if unlike := [key for key in own if own[key] != theirs[key]]:
        raise RequestError(
            f"the workers' {' and '.join(unlike)} is not the one here: {game.checkpoint.name} must be the same "
            "checkpoint on every machine, and is opened anew by every worker"
        )


def tasks_for(game: ModelGame, workers: Workers, masks: Masks) -> list[Task]:
    """The tasks that measuring the masks (bool [M, n], distinct) is cut into."""
    return cut_masks(game.players.unit_masks(masks), workers.transport.n_workers, head_cost=game.head_cost)


def measure_by_workers(game: ModelGame, masks: Masks, known: KnownScores) -> None:
    """Have the masks (bool [M, n], distinct and unknown) measured, and put their numbers on the shelf as they come.

    Raises `RequestError` and `RunError` as `Workers.open` and `Workers.map` do; what came before is committed.
    """
    fingerprints = game.fingerprints  # whose numbers they will be is settled first
    workers = open_workers(game)
    _check_same(game, fingerprints, workers.fingerprints)
    keys = [mask_key(mask) for mask in masks]
    head_cost = game.head_cost
    done, reported, heads = 0.0, 0, len(masks)
    try:
        with closing(workers.map(masks, tasks_for(game, workers, masks))) as stream:
            for results in stream:
                for row, nll, kl in zip(results.rows.tolist(), results.nll, results.kl, strict=True):
                    known.add(keys[row], Scores(nll, kl))
                known.commit_when_due()
                game.evaluations.unique += len(results.rows)
                game.evaluations.layer_evals += results.evaluations
                game.charge(results.evaluations + results.teacher)
                heads -= len(results.rows)
                done += results.evaluations + head_cost * len(results.rows)
                # Nothing is reported that a kill could still take back.
                if game.on_progress is not None and round(done) > reported and known.settled:
                    reported = round(done)
                    ahead = workers.remaining + head_cost * heads
                    game.on_progress("layer evaluations", reported, max(reported, round(done + ahead)))
    finally:
        known.commit()  # after Ctrl-C too
    if game.on_progress is not None and round(done) > reported:
        game.on_progress("layer evaluations", round(done), round(done))
