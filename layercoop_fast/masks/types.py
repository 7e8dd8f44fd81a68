"""What a game is, and the checks at its edge.

A game is any callable from masks `bool[M, n]` (True = the player is kept) to worths `float64[M]`, higher is better.
Every estimator and every search takes any game; a worth must depend on its own mask alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError

Masks: TypeAlias = npt.NDArray[np.bool_]
"""`bool[M, n]`: one row a coalition, True where the player is kept. `bool[n]` where a single mask is meant."""

Floats: TypeAlias = npt.NDArray[np.float64]

Progress: TypeAlias = Callable[[str, int, int], None]
"""`progress(stage, done, total)`: called as work advances; `stage` is a plural noun such as "permutations"."""


class Game(Protocol):
    """`game(masks: bool[M, n]) -> float64[M]`. It may also say how many players it has, as `n_players: int`."""

    def __call__(self, masks: Masks, /) -> Floats:
        """Return the worth of each mask; NaN and infinity are answers too, for the caller to judge."""


@runtime_checkable
class FlipGame(Protocol):
    """A game that knows a shortcut to the worths of a mask and of its n neighbours, each with one player flipped."""

    def flips(self, masks: Masks, /) -> tuple[Floats, Floats]:
        """Return the worths `float64[M]` of the masks and `float64[M, n]` of each mask with player i flipped."""


@runtime_checkable
class MarginalGame(Protocol):
    """A game that knows a shortcut to what each player adds on average, without the worth of any single mask."""

    def mean_marginals(self, masks: Masks, /) -> tuple[Floats, Floats]:
        """Return the mean over M ≥ 2 masks of v(m with i) − v(m without i), `float64[n]`, and its standard error."""


def n_players_of(game: object, n_players: int | None = None) -> int:
    """Return how many players the game has: its own `n_players`, or what the caller says where it has none.

    Raises `RequestError` when neither says, when they disagree, or when the number is not a positive integer.
    """
    own = getattr(game, "n_players", None)
    if own is None and n_players is None:
        raise RequestError("this game does not say how many players it has: give n_players=N")
    if own is not None and n_players is not None and own != n_players:
        raise RequestError(f"n_players={n_players}, but this game has {own} players")
    n = own if own is not None else n_players
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise RequestError(f"n_players must be a positive integer, not {n!r}")
    return int(n)


def check_masks(masks: object, n_players: int) -> Masks:
    """Return `masks` unchanged if it is a `bool[M, n_players]` array; raise `RequestError` saying what it is otherwise.

    A single mask `bool[n_players]` is returned as one row: other libraries (shapiq's samplers) ask none and all so.
    Integers are refused rather than converted: an index list and a 0/1 mask look alike, and one of them is wrong.
    """
    if not isinstance(masks, np.ndarray):
        raise RequestError(f"masks must be a NumPy array bool[M, {n_players}], not {type(masks).__name__}")
    if masks.dtype != np.bool_:
        raise RequestError(f"masks must be of dtype bool (True = kept), not {masks.dtype}")
    if masks.shape == (n_players,):
        return masks[None]
    if masks.ndim != 2 or masks.shape[1] != n_players:
        raise RequestError(f"masks must be of shape [M, {n_players}], one column a player, not {list(masks.shape)}")
    return masks


def play(game: Game, masks: Masks) -> Floats:
    """Ask the game for the worths of `masks` (`bool[M, n]`) and return them as `float64[M]`, NaN and infinity included.

    Raises `RequestError` when the answer is not one number a mask. No masks are answered without asking.
    """
    if len(masks) == 0:
        return np.empty(0)
    worths = np.asarray(game(masks), dtype=np.float64)
    if worths.shape != (len(masks),):
        raise RequestError(f"the game answered shape {list(worths.shape)} to {len(masks)} masks, not one worth a mask")
    return worths


def require_finite(worths: Floats) -> Floats:
    """Return `worths` (float64 [...]) unchanged; raise `RequestError` with the count when some are NaN or infinite.

    A mean over marginals cannot leave such worths out: the masks that ruin the model are not missing at random.
    """
    bad = int(np.count_nonzero(~np.isfinite(worths)))
    if bad:
        raise RequestError(
            f"{bad} of {worths.size} worths are NaN or infinite, so no mean over them exists: use a bounded worth "
            "(the perplexity ratio, say), or estimate on a surrogate fitted to the finite pairs"
        )
    return worths
