"""From what a user pays, layers, parameters, time or memory, to what a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.export.players import ExportablePlayers
from layercoop_fast.masked.players import Label, Players
from layercoop_fast.pruning.player_costs import (
    PlayerCosts,
    count_bytes,
    count_parameters,
    measure_seconds,
    read_seconds,
)
from layercoop_fast.pruning.request import Constraints, Goal
from layercoop_fast.search.base import check_n_remove
from layercoop_fast.search.constraints import ConstrainedFamily
from layercoop_fast.search.target import Target

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.masks.types import Floats, Masks


def allowed_by(constraints: Constraints, game: ModelGame) -> ConstrainedFamily:
    """The masks with a plain checkpoint that keep to the constraints.

    Raises `RequestError` where the constraints contradict each other.
    """
    players, n_layers = game.masked.players, game.masked.skeleton.n_layers
    first, last = constraints.keep_first, constraints.keep_last
    if min(first, last) < 0 or first + last > n_layers:
        raise RequestError(f"keep_first={first} and keep_last={last} do not fit {n_layers} layers")
    if constraints.stages != 1 and players.kind != "layers":
        raise RequestError("stages= counts layers: it goes with players=layers")
    ends = [*range(first), *range(n_layers - last, n_layers)]
    return ConstrainedFamily(
        ExportablePlayers(game.checkpoint.model.config, players),
        players.n_players,
        keep=sorted(
            {player for label in (*ends, *constraints.keep) for player in _players_of(game, label, stays=True)}
        ),
        must_go=sorted({player for label in constraints.must_go for player in _players_of(game, label)}),
        stages=constraints.stages,
    )


@dataclass(frozen=True, eq=False)
class ResolvedGoal:
    """A goal on one game: what the search is asked for, and what a mask reaches of it.

    Attributes:
        kind: "remove", "drop", "speedup" or "fit".
        asked: the number that was asked for, in the unit of `kind`.
        target: the masks that meet it.
        costs: what each player costs; None where players are counted.
    """

    kind: str
    asked: float
    target: Target
    costs: PlayerCosts | None

    def record(self, mask: Masks, players: Players) -> dict[str, Any]:
        """The `budget` of `layercoop.json` for a mask (bool [n]).

        `in_checkpoint` counts only layers that are gone as a whole: halves of layers stay in the checkpoint as zeros.
        For a group with such halves, the share of its parameters that is gone counts.
        """
        found: dict[str, Any] = {"kind": self.kind, "asked": self.asked, "reached": self._reached(~mask)}
        found["in_checkpoint"] = self._reached(~mask * _gone(players, mask))
        if self.costs is not None:
            costs = self.costs
            found["costs"] = {
                "unit": costs.unit,
                "source": costs.source,
                "players": costs.players.tolist(),
                "rest": costs.rest,
            }
        return found

    def _reached(self, gone: Any) -> float:
        """What is reached where these shares of the players are gone, [n] numbers from 0 to 1."""
        if self.costs is None:
            return int((gone == 1).sum())
        saved = float((self.costs.players * gone).sum())
        if self.kind == "drop":
            return saved / float(self.costs.players.sum())
        left = self.costs.total - saved
        return left if self.kind == "fit" else self.costs.total / left


def _gone(players: Players, mask: Masks) -> Floats:
    """For each player, the share of its parameters in layers of which nothing is kept, float64 [n]."""
    there, shares = players.layer_mask(mask), np.empty(players.n_players)
    for player, group in enumerate(players.groups):
        sizes = np.array([max(players.n_parameters(unit), 1) for unit in group], dtype=np.float64)
        shares[player] = sizes[[not there[players.layer(unit)] for unit in group]].sum() / sizes.sum()
    return shares


def resolve(goal: Goal, game: ModelGame, allowed: ConstrainedFamily) -> ResolvedGoal:
    """What a goal comes to on this game among the allowed masks.

    Where players cost the same it is a number of them: for `drop` the nearest, otherwise the least that is enough.
    Raises `RequestError` where no allowed mask meets it, naming the nearest one that is there.
    """
    n = game.n_players
    if goal.remove is not None:
        return _counted("remove", goal.remove, n, goal.remove, None, allowed)
    if goal.drop is not None:
        costs = count_parameters(game)
        if not costs.players.any():
            raise RequestError("these players have no parameters: give remove=K")
        if costs.equal:
            n_remove = round(goal.drop * n)
            if not 0 < n_remove < n:
                nearest = 1 if n_remove == 0 else n - 1
                raise RequestError(
                    f"no mask meets drop={goal.drop:g}: of {n} equal players it is nearest to {n_remove}; what can "
                    f"go is {nearest}, drop={nearest / n:.4g}"
                )
            return _counted("drop", goal.drop, n, n_remove, costs, allowed)
        return _covered("drop", goal.drop, costs, goal.drop * float(costs.players.sum()), allowed)
    if goal.fit is not None:
        costs = count_bytes(game)
        least = costs.total - goal.fit
        if least <= 0:
            raise RequestError(
                f"the weights take {costs.total:.0f} bytes and fit {goal.fit} already: nothing has to go"
            )
        return _covered("fit", goal.fit, costs, least, allowed)
    assert goal.speedup is not None  # `check` sees to that
    costs = read_seconds(goal.costs, n) if goal.costs.endswith(".json") else measure_seconds(game, goal.costs)
    return _covered("speedup", goal.speedup, costs, costs.total * (1 - 1 / goal.speedup), allowed)


def _counted(
    kind: str, asked: float, n: int, n_remove: int, costs: PlayerCosts | None, allowed: ConstrainedFamily
) -> ResolvedGoal:
    check_n_remove(n, n_remove)
    allowed.check_size(n - n_remove)
    return ResolvedGoal(kind, asked, Target.of_count(n, n_remove), costs)


def _covered(kind: str, asked: float, costs: PlayerCosts, least: float, allowed: ConstrainedFamily) -> ResolvedGoal:
    n = len(costs.players)
    target = Target(costs.players, least, allowed.must_go)
    resolved = ResolvedGoal(kind, asked, target, costs)
    if allowed.stages > 1 and not costs.equal:
        raise RequestError("stages= goes with layers of equal cost, and these are unequal: give remove=K instead")
    try:
        target.most_saving(allowed)
    except RequestError as error:
        best = max(
            (mask for size in range(1, n) if (mask := allowed.best(-costs.players, size)) is not None),
            key=target.saved,
            default=None,
        )
        nearest = "" if best is None else f": the nearest reaches {resolved._reached(~best):.4g}"
        raise RequestError(f"no allowed mask meets {kind}={asked:g}{nearest}") from error
    if not costs.equal:
        return resolved
    # At least this many; the family may have no member of that size.
    first = int(np.ceil(least / float(costs.players[0]) - 1e-9))
    zeros = np.zeros(n)
    size = next(size for size in range(max(first, 1), n) if allowed.best(zeros, n - size) is not None)
    return ResolvedGoal(kind, asked, Target.of_count(n, size), costs)


def _players_of(game: ModelGame, label: Label, *, stays: bool = False) -> list[int]:
    """The players that hold a unit of this label; for a whole layer, those of both its halves.

    A layer in no player is never removed: with `stays` it has no players here, otherwise `RequestError` is raised.
    """
    players = game.masked.players
    number, _, part = str(label).partition(".")
    found = [
        index
        for index, group in enumerate(players.groups)
        if any(
            str(players.label(unit)) == str(label) or (not part and str(players.layer(unit)) == number)
            for unit in group
        )
    ]
    if found:
        return found
    units = range(players.n_units)
    if stays and str(label) in {str(name) for unit in units for name in (players.label(unit), players.layer(unit))}:
        return []
    raise RequestError(f"{label!r} is in no player: they are made of {players.label(0)} to {players.label(units[-1])}")
