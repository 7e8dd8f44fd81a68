"""The published contribution of a player: its mean marginal over given masks, which is not the Shapley value."""

from __future__ import annotations

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import (
    FlipGame,
    Floats,
    Game,
    MarginalGame,
    Masks,
    Progress,
    check_masks,
    n_players_of,
    play,
    require_finite,
)
from layercoop_fast.shapley.values import Moments, ShapleyValues


def stratified_marginals(
    game: Game, masks: Masks, *, batch: int = 1 << 12, progress: Progress | None = None, device: str = "cpu"
) -> ShapleyValues:
    """c_i = mean over masks m of v(m with i) − v(m without i). **This is not the Shapley value.**

    The Shapley value gives all sizes of coalitions equal weight. This average has the sizes of the given masks only
    (published: 80,000 of `stratified_masks`), so the values need not sum to v(all) − v(none). Source: arXiv 2602.07804.

    One of "m with i" and "m without i" is m itself. So each of the M masks needs n + 1 worths, its own and those of n
    neighbours with one player flipped: M·(n + 1) in all, where the published code asks 2·M·n. A game with a shortcut to
    them (`FlipGame`) or to their mean (`MarginalGame`), such as a surrogate, is asked through it; the values are the
    same within rounding.

    Args:
        game: any game.
        masks: `bool[M, n]`, M ≥ 2.
        batch: masks of one call of the game; the shortcut to the mean takes all at once.
        progress: called as `progress("marginals", done, M)`.
        device: "cpu", or "cuda" or "cuda:N" for a GPU (the extra `triton`), for a `PublishedSurrogate` or the
            `link_game` of a `Surrogate`.

    Returns:
        Values and standard errors, `float64[n]`. The errors take the masks as independent draws: they are a little too
        large for stratified ones.

    Raises:
        RequestError: for other masks, and when a worth is NaN or infinite.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import stratified_marginals, stratified_masks
        >>> masks = stratified_masks(4, 50, seed=0)
        >>> found = stratified_marginals(lambda masks: masks @ np.array([0.1, 0.2, 0.3, 0.4]), masks)
        >>> found.values.round(3).tolist()
        [0.1, 0.2, 0.3, 0.4]
    """
    if not isinstance(masks, np.ndarray) or masks.ndim != 2 or len(masks) < 2:
        raise RequestError("masks must be an array bool[M, n] of at least 2 masks, or their mean has no standard error")
    if batch < 1:
        raise RequestError(f"batch must be at least 1 mask, not {batch}")
    n = n_players_of(game, masks.shape[1])
    check_masks(masks, n)

    n_evaluations = len(masks) * (n + 1)
    if device != "cpu" and not (isinstance(game, MarginalGame) and hasattr(game, "networks")):
        raise RequestError(
            "device: a GPU takes the marginals of networks alone, a PublishedSurrogate or link_game of a Surrogate"
        )
    if isinstance(game, MarginalGame):
        there = {} if device == "cpu" else {"device": device}
        mean, stderr = game.mean_marginals(masks, **there)
        require_finite(mean)
        if progress is not None:
            progress("marginals", len(masks), len(masks))
        return ShapleyValues(mean, stderr, n_evaluations, "stratified_marginals")

    moments = Moments(n)
    for low in range(0, len(masks), batch):
        block = masks[low : low + batch]
        worths, flipped = game.flips(block) if isinstance(game, FlipGame) else _flips(game, block)
        require_finite(np.column_stack([worths, flipped]))
        gain = flipped - worths[:, None]
        moments.add(np.where(block, -gain, gain))
        if progress is not None:
            progress("marginals", moments.count, len(masks))
    return ShapleyValues(moments.mean, moments.stderr(), n_evaluations, "stratified_marginals")


def _flips(game: Game, masks: Masks) -> tuple[Floats, Floats]:
    """Ask any game for the worths of `masks` and of their neighbours in one call (see `FlipGame.flips`)."""
    n_masks, n = masks.shape
    neighbours = masks[:, None, :] ^ np.eye(n, dtype=np.bool_)
    worths = play(game, np.concatenate([masks, neighbours.reshape(-1, n)]))
    return worths[:n_masks], worths[n_masks:].reshape(n_masks, n)
