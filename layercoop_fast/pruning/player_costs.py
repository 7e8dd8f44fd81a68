"""What each player costs to keep: parameters, bytes, or seconds measured on this machine; and what never goes.

costs = measure_seconds(game)                     # prefill, by the model's own blocks
least = costs.total - costs.total / 1.5           # what the removed players must take together to be 1.5× as fast
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layercoop_fast.engine.quantised import bytes_of, parameters_of
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.text import read_json
from layercoop_fast.masks.types import Floats

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame

_REPEATS = 5
# Costs that differ by less than this share are equal: then players are counted.
_EQUAL = 1e-9


@dataclass(frozen=True, eq=False)
class PlayerCosts:
    """What a model costs, player by player.

    Attributes:
        unit: "parameters", "bytes" or "seconds".
        players: float64 [n], 0 at least.
        rest: what is not a player: embedding, head, and units of no player.
        source: where the numbers are from: "counted", "prefill", "decode" or a file's name.
    """

    unit: str
    players: Floats
    rest: float
    source: str

    @property
    def total(self) -> float:
        """The full model's cost."""
        return float(self.players.sum()) + self.rest

    @property
    def equal(self) -> bool:
        """Whether all players cost the same, so that counting them is enough."""
        return bool(np.ptp(self.players) <= _EQUAL * self.players.max(initial=0.0))


def count_parameters(game: ModelGame) -> PlayerCosts:
    """Parameters of every player and of the rest, tied ones once."""
    model = game.masked.skeleton.model
    return _of_units(
        game,
        lambda unit: float(game.masked.players.n_parameters(unit)),
        "parameters",
        model_total=float(parameters_of(model.parameters())),
    )


def count_bytes(game: ModelGame) -> PlayerCosts:
    """Bytes of the weights of every player and of the rest.

    Raises `RequestError` for halves of blocks: a half that goes is zeros in the checkpoint, and saves no byte.
    """
    if game.masked.players.sublayers is not None:
        raise RequestError(
            "fit= needs whole layers as players: a half of a block that goes is written as zeros and saves no memory"
        )
    total = bytes_of(game.masked.skeleton.model.parameters())
    return _of_units(game, lambda layer: float(game.masked.players.n_bytes(layer)), "bytes", model_total=float(total))


def measure_seconds(game: ModelGame, phase: str = "prefill") -> PlayerCosts:
    """Seconds of every player and of the rest on one window (prefill) or one token (decode), by the model's own blocks.

    Units alike in class and shapes share the median of all their times: that they differ is noise. Decoding is timed
    without a cache to read, which counts at long contexts. Raises `RequestError` where blocks are streamed.
    """
    if game.masked.skeleton.streamed is not None:
        raise RequestError("speedup= measures the blocks, which offload= reads from files: give costs=FILE.json")
    ids = game.masked.windows.ids[:1] if phase == "prefill" else game.masked.windows.ids[:1, :1]
    context = game.masked.skeleton.context(ids)
    hidden = context.embedding
    times: dict[Any, list[float]] = {}
    kinds = [_kind(game, unit) for unit in range(game.masked.players.n_units)]
    for unit, kind in enumerate(kinds):
        seconds = _times(game, lambda unit=unit: game.masked.players.run(context, unit, hidden))  # type: ignore[misc]
        times.setdefault(kind, []).extend(seconds)
    rest = statistics.median(_times(game, lambda: context.logits(hidden)))
    seconds_of = [statistics.median(times[kind]) for kind in kinds]
    costs = _of_units(game, lambda unit: seconds_of[unit], "seconds", model_total=sum(seconds_of) + rest)
    return PlayerCosts("seconds", costs.players, costs.rest, phase)


def read_seconds(path: str, n_players: int) -> PlayerCosts:
    """Read `{"players": [n numbers], "rest": number}`, in seconds or any unit of time.

    Raises `RequestError` for what is not that.
    """
    given = read_json(Path(path))
    form = f'{path} must hold {{"players": [{n_players} numbers], "rest": number}}, none of them negative'
    if not isinstance(given, dict) or not isinstance(given.get("players"), list):
        raise RequestError(form)
    numbers = [*given["players"], given.get("rest", 0)]
    fine = all(isinstance(x, (int, float)) and not isinstance(x, bool) and 0 <= x < 1e300 for x in numbers)
    if not fine or len(numbers) != n_players + 1:
        raise RequestError(f"{form}: it has {len(numbers) - 1} players")
    players = np.array(numbers[:-1], dtype=np.float64)
    if not players.any():
        raise RequestError(f"{path} says that no player costs anything: nothing could be saved")
    return PlayerCosts("seconds", players, float(numbers[-1]), Path(path).name)


def _of_units(game: ModelGame, cost: Callable[[int], float], unit: str, model_total: float) -> PlayerCosts:
    players = np.array([sum(cost(one) for one in group) for group in game.masked.players.groups], dtype=np.float64)
    return PlayerCosts(unit, players, max(model_total - float(players.sum()), 0.0), "counted")


def _kind(game: ModelGame, unit: int) -> Any:
    """What units of equal cost have in common: which part of a block, its classes and shapes."""
    block = game.masked.skeleton.blocks[game.masked.players.layer(unit)]
    part = 0 if game.masked.players.sublayers is None else unit % 2
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
    return part, tuple(map(type, block.modules())), shapes


def _times(game: ModelGame, call: Callable[[], Any]) -> list[float]:
    """Seconds of a few calls after a first one."""
    import torch

    device = game.masked.skeleton.device
    found = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return found[1:]
