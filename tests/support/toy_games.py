"""Small games with known answers, for the tests of every estimator and search."""

from __future__ import annotations

import numpy as np

from layercoop_fast.masks.types import Floats, Game, Masks


class Additive:
    """v(S) = Σ of the weights of the players in S: every marginal of player i is its weight."""

    def __init__(self, weights: object) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.n_players = len(self.weights)

    def __call__(self, masks: Masks) -> Floats:
        return masks @ self.weights


class Table:
    """Any game of n players: `worths[r]` (float64 [2**n]) belongs to the mask with the bits of r (as `all_masks`)."""

    def __init__(self, worths: object) -> None:
        self.worths = np.asarray(worths, dtype=np.float64)
        self.n_players = len(self.worths).bit_length() - 1

    def __call__(self, masks: Masks) -> Floats:
        return self.worths[masks @ (1 << np.arange(self.n_players))]


class Redundant:
    """A stand-in for a model: worth in (0, 1], lost by a factor for each player removed, little for the dispensable.

    Removing two neighbours at once costs a further factor, so that the game is not additive in any transform.
    """

    def __init__(self, n_players: int, dispensable: list[int]) -> None:
        self.n_players = n_players
        self.damage = np.full(n_players, 0.4)
        self.damage[dispensable] = 0.03

    def __call__(self, masks: Masks) -> Floats:
        removed = ~masks
        pairs = (removed[:, 1:] & removed[:, :-1]).sum(axis=1)
        return np.exp(-(removed @ self.damage) - 0.02 * pairs)


class Influential(Redundant):
    """A toy model that also tells what rules want to know of a full model."""

    def block_influence(self) -> Floats:
        return self.damage

    def cka_distances(self) -> Floats:
        return self.block_influence()

    def zigzag_changes(self) -> Floats:
        return self.damage

    def angular_distances(self, run_length: int) -> Floats:
        return np.array([self.damage[i : i + run_length].sum() for i in range(self.n_players - run_length + 1)])

    def taylor_importance(self, progress: object) -> Floats:
        return self.damage

    def with_utility(self, utility: str) -> Influential:
        assert utility == "kl"
        return self


class Counting:
    """Plays another game and keeps every mask it was asked, `calls` by call."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.n_players = game.n_players  # type: ignore[attr-defined]
        self.calls: list[Masks] = []

    def __call__(self, masks: Masks) -> Floats:
        self.calls.append(masks.copy())
        return self.game(masks)

    @property
    def asked(self) -> int:
        return sum(len(masks) for masks in self.calls)


class Spoilt:
    """Plays another game, but a mask whose first `n_players // 4` bits hold an odd number answers NaN."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.n_players = game.n_players  # type: ignore[attr-defined]

    def is_spoilt(self, masks: Masks) -> Masks:
        return masks[:, : self.n_players // 4].sum(axis=1) % 2 == 1

    def __call__(self, masks: Masks) -> Floats:
        return np.where(self.is_spoilt(masks), np.nan, self.game(masks))


class Family:
    """Every mask that `member` accepts, as `search.base.Allowed` wants it; `best` looks at them all."""

    def __init__(self, member) -> None:  # type: ignore[no-untyped-def]
        self.member = member

    def check(self, mask: Masks) -> str | None:
        return None if self.member(mask) else "not in the family"

    def best(self, costs: Floats, n_kept: int) -> Masks | None:
        from layercoop_fast.masks.stratified import all_masks

        masks = all_masks(len(costs))
        masks = masks[masks.sum(axis=1) == n_kept]
        masks = masks[[bool(self.member(mask)) for mask in masks]]
        return masks[np.argmin(~masks @ costs)] if len(masks) else None
