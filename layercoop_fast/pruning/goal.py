"""From what a user pays, layers, parameters, time or memory, to what a search is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.export.players import ExportablePlayers
from layercoop_fast.masked.players import Label, Players
from layercoop_fast.pruning.player_costs import (
    PHASES,
    PlayerCosts,
    count_bytes,
    count_parameters,
    measure_seconds,
    read_seconds,
)
from layercoop_fast.search.base import check_n_remove
from layercoop_fast.search.constraints import Constraints
from layercoop_fast.search.target import Target

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.masks.types import Floats, Masks


@dataclass(frozen=True)
class Budget:
    """How much has to go; exactly one of the four is given.

    Attributes:
        remove: players.
        drop: share of the players' parameters, 0 to 1; of equal players the nearest number of them.
        speedup: time of the full model over that of the pruned one, at least.
        fit: bytes that the pruned model's weights may take.
        costs: of `speedup`: "prefill" or "decode", measured, or a .json file (`pruning/player_costs.py`).
    """

    remove: int | None = None
    drop: float | None = None
    speedup: float | None = None
    fit: int | None = None
    costs: str = "prefill"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return self.remove is None and self.drop is None and self.speedup is None and self.fit is None

    def check(self) -> None:
        """Raise `RequestError` where this asks for nothing, for two things, or for what cannot be."""
        given = {
            name: value for name in ("remove", "drop", "speedup", "fit") if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            raise RequestError(
                "say how much to remove, in one way: a number of players (--remove 3), a share of parameters "
                "(--drop 0.1), a speed (--speedup 1.5) or a size (--fit 2GiB)"
            )
        if self.drop is not None and not 0.0 < self.drop < 1.0:
            raise RequestError(f"--drop {self.drop} is not a share between 0 and 1")
        if self.speedup is not None and not 1.0 < self.speedup < float("inf"):
            raise RequestError(f"--speedup {self.speedup} is no gain: give a factor above 1, like 1.5")
        if self.fit is not None and self.fit < 1:
            raise RequestError(f"--fit {self.fit} leaves no byte for weights")
        if self.costs not in PHASES and not self.costs.endswith(".json"):
            raise RequestError(f"--costs {self.costs!r} is neither {' nor '.join(PHASES)} nor a .json file")
        if self.costs != "prefill" and self.speedup is None:
            raise RequestError("--costs belongs to --speedup: leave it out")


@dataclass(frozen=True)
class Limits:
    """What a user rules out, in layers and labels of the original model.

    Attributes:
        keep: labels that stay, and
        keep_first, keep_last: so many first and last layers too.
        must_go: labels that are removed.
        stages: contiguous stages that keep the same number of layers.
    """

    keep: Sequence[Label] = ()
    keep_first: int = 0
    keep_last: int = 0
    must_go: Sequence[Label] = ()
    stages: int = 1

    def on(self, game: ModelGame) -> Constraints:
        """These limits as a family of masks that have a plain checkpoint. `RequestError` where they contradict."""
        players, n_layers = game.masked.players, game.masked.skeleton.n_layers
        if min(self.keep_first, self.keep_last) < 0 or self.keep_first + self.keep_last > n_layers:
            raise RequestError(
                f"--keep-first {self.keep_first} and --keep-last {self.keep_last} do not fit {n_layers} layers"
            )
        if self.stages != 1 and players.kind != "layers":
            raise RequestError("--stages counts layers: it goes with --players layers")
        ends = [*range(self.keep_first), *range(n_layers - self.keep_last, n_layers)]
        exportable = ExportablePlayers(game.checkpoint.model.config, players)
        return Constraints(
            exportable,
            players.n_players,
            keep=sorted({player for label in (*ends, *self.keep) for player in _players_of(game, label, stays=True)}),
            must_go=sorted({player for label in self.must_go for player in _players_of(game, label)}),
            stages=self.stages,
        )

    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "keep": list(self.keep),
            "keep_first": self.keep_first,
            "keep_last": self.keep_last,
            "must_go": list(self.must_go),
            "stages": self.stages,
        }


@dataclass(frozen=True, eq=False)
class Spending:
    """A budget on one game: what the search is asked for, and what it is said to have reached."""

    kind: str
    asked: float
    target: Target
    costs: PlayerCosts | None

    def record(self, mask: Masks, players: Players) -> dict[str, Any]:
        """The `budget` of `layercoop.json`.

        `in_checkpoint` is what is reached without the halves of layers that are there still, as zeros; of a group of
        which some are, the share of its parameters that is gone counts.
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
        """What comes of players of which such a share is gone, 0 to 1 each."""
        if self.costs is None:
            return int((gone == 1).sum())
        saved = float((self.costs.players * gone).sum())
        if self.kind == "drop":
            return saved / float(self.costs.players.sum())
        left = self.costs.total - saved
        return left if self.kind == "fit" else self.costs.total / left


def _gone(players: Players, mask: Masks) -> Floats:
    """Of each player the share of its parameters that is in layers of which nothing is kept, float64 [n]."""
    there, shares = players.layer_mask(mask), np.empty(players.n_players)
    for player, group in enumerate(players.groups):
        sizes = np.array([max(players.n_parameters(unit), 1) for unit in group], dtype=np.float64)
        shares[player] = sizes[[not there[players.layer(unit)] for unit in group]].sum() / sizes.sum()
    return shares


def resolve(budget: Budget, game: ModelGame, limits: Constraints) -> Spending:
    """What a budget comes to on this game within these limits.

    Where players cost the same it is a number of them: for `drop` the nearest, otherwise the least that does. Raises
    `RequestError` where nothing allowed meets it, naming the nearest that is there.
    """
    n = game.n_players
    if budget.remove is not None:
        return _counted("remove", budget.remove, n, budget.remove, None, limits)
    if budget.drop is not None:
        costs = count_parameters(game)
        if not costs.players.any():
            raise RequestError("these players have no parameters: give --remove K")
        if costs.equal:
            n_remove = round(budget.drop * n)
            if not 0 < n_remove < n:
                nearest = 1 if n_remove == 0 else n - 1
                raise RequestError(
                    f"no mask meets --drop {budget.drop:g}: of {n} equal players it is nearest to {n_remove}; what can "
                    f"go is {nearest}, --drop {nearest / n:.4g}"
                )
            return _counted("drop", budget.drop, n, n_remove, costs, limits)
        return _covered("drop", budget.drop, costs, budget.drop * float(costs.players.sum()), limits)
    if budget.fit is not None:
        costs = count_bytes(game)
        least = costs.total - budget.fit
        if least <= 0:
            raise RequestError(
                f"the weights take {costs.total:.0f} bytes and fit {budget.fit} already: nothing has to go"
            )
        return _covered("fit", budget.fit, costs, least, limits)
    assert budget.speedup is not None  # `check` sees to that
    costs = read_seconds(budget.costs, n) if budget.costs.endswith(".json") else measure_seconds(game, budget.costs)
    return _covered("speedup", budget.speedup, costs, costs.total * (1 - 1 / budget.speedup), limits)


def _counted(
    kind: str, asked: float, n: int, n_remove: int, costs: PlayerCosts | None, limits: Constraints
) -> Spending:
    check_n_remove(n, n_remove)
    limits.check_size(n - n_remove)
    return Spending(kind, asked, Target.of_count(n, n_remove), costs)


def _covered(kind: str, asked: float, costs: PlayerCosts, least: float, limits: Constraints) -> Spending:
    n = len(costs.players)
    target = Target(costs.players, least, limits.must_go)
    spending = Spending(kind, asked, target, costs)
    if limits.stages > 1 and not costs.equal:
        raise RequestError("--stages goes with layers of equal cost, and these are unequal: give --remove K instead")
    try:
        target.dearest(limits)
    except RequestError as error:
        best = max(
            (mask for size in range(1, n) if (mask := limits.best(-costs.players, size)) is not None),
            key=target.saved,
            default=None,
        )
        nearest = "" if best is None else f": the nearest reaches {spending._reached(~best):.4g}"
        raise RequestError(f"no allowed mask meets --{kind} {asked:g}{nearest}") from error
    if not costs.equal:
        return spending
    # So many at least; the family may have no member of that size.
    first = int(np.ceil(least / float(costs.players[0]) - 1e-9))
    zeros = np.zeros(n)
    size = next(size for size in range(max(first, 1), n) if limits.best(zeros, n - size) is not None)
    return Spending(kind, asked, Target.of_count(n, size), costs)


def _players_of(game: ModelGame, label: Label, *, stays: bool = False) -> list[int]:
    """The players that hold a unit of this label: of a whole layer, both its halves.

    None of a layer that is in no player, and so stays, where that is what is wished.
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
