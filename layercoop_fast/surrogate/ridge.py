"""Linear and pairwise ridge surrogates in closed form: the references that every network is compared with."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.inputs.text import as_saved
from layercoop_fast.masks.types import Floats, Masks, check_masks
from layercoop_fast.surrogate.archive import read_archive, write_archive
from layercoop_fast.surrogate.link import Link
from layercoop_fast.surrogate.pairs import fittable_pairs
from layercoop_fast.surrogate.quality import r_squared
from layercoop_fast.surrogate.threads import one_thread

# Penalties tried, in units of one mask: 0/1 masks need no scaling.
_PENALTIES = np.geomspace(1e-3, 1e3, 25)

# The penalty of a pair's coefficient relative to a player's. Centred products are small (variance ≤ 1/16): with equal
# penalties they would be shrunk more only because of their scale.
_PAIR_PENALTY = 0.3

_MAX_FEATURES = 10_000

_FORMAT = "layercoop_fast.ridge/1"


@dataclass(frozen=True, eq=False)
class RidgeSurrogate:
    """f(m) = c + Σ_i w_i m_i + Σ_{i<j} W_ij m_i m_j (the last sum with `order` 2), least squares with a ridge penalty.

    It is a game on the scale of the worths that it was fitted to (`link.back` of f), with the `flips` shortcut and the
    Shapley values of f in closed form. The penalty is on the coefficients of the *centred* products
    (m_i − p_i)(m_j − p_j), with p the mean of the fitted masks, so that shrinking the pairs leaves the players alone.

    Attributes:
        order: 1 for players alone, 2 for players and pairs.
        centre: `float64[n]`, p.
        gram: `float64[F, F]`, ZᵀZ of the features Z = [1, m − p, (m_i − p_i)(m_j − p_j) for i < j].
        moment: `float64[F]`, Zᵀ y with y the worths on the scale of the fit.
        penalty: λ of a player's coefficient; a pair's is 0.3 λ, the intercept has none.
        link: between worths and the scale of the fit.
        n_players: n.
        intercept: c.
        weight: w, `float64[n]`.
        pair_weight: W, `float64[n, n]`, symmetric with a diagonal of 0.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import RidgeSurrogate, stratified_masks
        >>> masks = stratified_masks(6, 200, seed=0, strata=[5, 4, 3])
        >>> ridge = RidgeSurrogate.fit(masks, masks @ np.arange(1.0, 7.0), order=1, scale="identity", penalty=1e-6)
        >>> ridge.shapley().round(3).tolist()
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    """

    order: int
    centre: Floats
    gram: Floats
    moment: Floats
    penalty: float
    link: Link
    n_players: int
    intercept: float = field(init=False)
    weight: Floats = field(init=False)
    pair_weight: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Solve (ZᵀZ + Λ) θ = Zᵀy and write θ in the coordinates of plain 0/1 masks."""
        n, p = self.n_players, self.centre
        theta = self._solve(self.moment)
        pairs = np.zeros((n, n))
        if self.order == 2:
            pairs[np.triu_indices(n, 1)] = theta[1 + n :]
            pairs += pairs.T
        players = theta[1 : 1 + n]
        object.__setattr__(self, "intercept", float(theta[0] - players @ p + p @ pairs @ p / 2))
        object.__setattr__(self, "weight", players - pairs @ p)
        object.__setattr__(self, "pair_weight", pairs)

    def _solve(self, moments: Floats) -> Floats:
        """Return θ, `float64[F]` or `float64[F, W]`, of Zᵀy for one or several y."""
        penalties = self.penalty * _costs(self.n_players, self.order)
        return _solve(self.gram + np.diag(penalties), moments)

    @classmethod
    def fit(
        cls, masks: Masks, worths: Floats, *, order: int = 2, penalty: float | None = None, scale: str = "auto"
    ) -> RidgeSurrogate:
        """Fit to masks `bool[M, n]` and worths `float64[M]`; `scale` as in `Link.of`.

        Without `penalty` it is the one of 25 between 1e-3 and 1e3 with the least leave-one-out error, which has a
        closed form (see `best_penalty`). The time is that of one eigenvalue problem of size min(M, F), with F features:
        n + 1, or n (n + 1) / 2 + 1 with pairs.

        Raises:
            RequestError: as `fittable_pairs` and `Link.of`, and for more than 10,000 features.
        """
        masks, worths = fittable_pairs(masks, worths)
        link = Link.of(worths, scale)
        return cls.fit_link(masks, link.forward(worths), link, order=order, penalty=penalty)

    @classmethod
    def fit_link(
        cls, masks: Masks, targets: Floats, link: Link, *, order: int, penalty: float | None = None
    ) -> RidgeSurrogate:
        """`fit` to masks `bool[M, n]` and targets `float64[M]` that are on the scale of the fit already."""
        n = masks.shape[1]
        if order not in (1, 2):
            raise RequestError(f"order is 1 (players) or 2 (and pairs), not {order}")
        if penalty is not None and not (np.isfinite(penalty) and penalty > 0):
            raise RequestError(f"the penalty must be a positive number, not {penalty}")
        n_features = len(_costs(n, order))
        if n_features > _MAX_FEATURES:
            raise RequestError(f"order {order} of {n} players has {n_features:,} coefficients, more than 10,000")
        centre: Floats = masks.mean(axis=0)
        z = features(masks, centre, order)
        if penalty is None:
            penalty = best_penalty(z[:, 1:] / np.sqrt(_costs(n, order)[1:]), targets)
        return cls(order, centre, _product(z.T, z), z.T @ targets, penalty, link, n)

    def __call__(self, masks: Masks, /) -> Floats:
        """Return the predicted worths, `float64[M]`, of masks `bool[M, n]`."""
        return self.link.back(self.values(masks))

    def values(self, masks: Masks) -> Floats:
        """Return f, `float64[M]`, on the scale of the fit."""
        m = check_masks(masks, self.n_players).astype(np.float64)
        values: Floats = self.intercept + m @ self.weight + ((m @ self.pair_weight) * m).sum(axis=1) / 2
        return values

    def flips(self, masks: Masks, /) -> tuple[Floats, Floats]:
        """Return the worths `float64[M]` of the masks and `float64[M, n]` of each mask with player i flipped.

        f(m with i) − f(m without i) = w_i + Σ_j W_ij m_j.
        """
        values = self.values(masks)
        marginals = self.weight + masks @ self.pair_weight
        return self.link.back(values), self.link.back(values[:, None] + np.where(masks, -marginals, marginals))

    @property
    def link_game(self) -> PairwiseGame:
        """The game f, on the scale of the fit."""
        return PairwiseGame(self.intercept, self.weight, np.triu(self.pair_weight, 1))

    def shapley(self) -> Floats:
        """Return the Shapley values of f, `float64[n]`, on the scale of the fit: w_i + ½ Σ_j W_ij.

        A pair's term is a game that two players win together, so each gets half of it. Exact for any n.
        """
        shapley: Floats = self.weight + self.pair_weight.sum(axis=1) / 2
        return shapley

    def shapley_of(self, masks: Masks, targets: Floats) -> Floats:
        """Return `shapley()` of fits to other targets `float64[M, W]` of the same masks, `float64[W, n]`.

        `masks` `bool[M, n]` are those of this fit, in any order; penalty and centre are those of this fit. One linear
        system is solved for all W.
        """
        n = self.n_players
        moments = features(check_masks(masks, n), self.centre, self.order).T @ targets
        theta = self._solve(moments)
        values: Floats = theta[1 : 1 + n].T.copy()
        if self.order == 2:
            # In 0/1 coordinates w_i = θ_i − Σ_j θ_ij p_j, so w_i + ½ Σ_j W_ij = θ_i + Σ_j θ_ij (½ − p_j).
            for i, j, pair in zip(*np.triu_indices(n, 1), theta[1 + n :], strict=True):
                values[:, i] += pair * (0.5 - self.centre[j])
                values[:, j] += pair * (0.5 - self.centre[i])
        return values

    def update(self, masks: Masks, worths: Floats) -> RidgeSurrogate:
        """Return the fit with masks `bool[M, n]` and worths `float64[M]` added: exactly the fit to all pairs at once.

        ZᵀZ and Zᵀy are sums over pairs, so new pairs are added to them and one system is solved; centre, penalty and
        link stay. (This is the information form of recursive least squares: it never subtracts.)
        """
        masks, worths = fittable_pairs(masks, worths)
        z = features(check_masks(masks, self.n_players), self.centre, self.order)
        targets = self.link.forward(worths)
        return replace(self, gram=self.gram + z.T @ z, moment=self.moment + z.T @ targets)

    def r2(self, masks: Masks, worths: Floats) -> float:
        """R² of masks `bool[M, n]` and worths `float64[M]`, on the scale of the fit (see `r_squared`)."""
        masks, worths = fittable_pairs(masks, worths)
        return r_squared(self.link.forward(worths), self.values(masks))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with a JSON header, whole or not at all, replacing one that is there."""
        header = {
            "order": self.order,
            "penalty": self.penalty,
            "n_players": self.n_players,
            "scale": self.link.scale,
            "floor": self.link.floor,
        }
        write_archive(Path(path), _FORMAT, header, {"centre": self.centre, "gram": self.gram, "moment": self.moment})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RidgeSurrogate:
        """Read what `save` wrote; `RequestError` when the file is missing, corrupt, or something else."""
        header, arrays = read_archive(Path(path), _FORMAT, ("centre", "gram", "moment"))
        with as_saved(path):
            link = Link(header["scale"], float(header["floor"]))
            n, order = header["n_players"], header["order"]
            shapes = [arrays[name].shape for name in ("centre", "gram", "moment")]
            if type(n) is not int or order not in (1, 2) or shapes[0] != (n,):
                raise ValueError(f"arrays of shapes {shapes} for {n} players and order {order}")
            count = 1 + n + (n * (n - 1) // 2 if order == 2 else 0)
            if shapes[1:] != [(count, count), (count,)] or any(one.dtype != np.float64 for one in arrays.values()):
                raise ValueError(f"arrays of shapes {shapes} for {n} players and order {order}")
            return cls(link=link, order=order, penalty=float(header["penalty"]), n_players=n, **arrays)


def features(masks: Masks, centre: Floats, order: int) -> Floats:
    """Z of masks `bool[M, n]`, `float64[M, F]`: ones, players minus `centre` `[n]`, and with order 2 their products."""
    centred = masks - centre
    columns: list[Any] = [np.ones((len(masks), 1)), centred]
    if order == 2:
        first, second = np.triu_indices(masks.shape[1], 1)
        columns.append(centred[:, first] * centred[:, second])
    return np.concatenate(columns, axis=1)


def weighted_lines(masks: Masks, targets: Floats, weights: npt.NDArray[Any], penalty: float) -> tuple[Floats, Floats]:
    """Return the weights `float64[E, n]` and intercepts `float64[E]` of E linear ridges on the same masks `bool[M, n]`.

    Ridge e fits column e of `targets` `float64[M, E]`, and pair m counts `weights[m, e]` times (a bootstrap sample).
    Each ridge needs a pair of positive weight.
    """
    n = masks.shape[1]
    centre: Floats = masks.mean(axis=0)
    z = features(masks, centre, 1)
    penalties = np.diag(penalty * _costs(n, 1))
    theta = np.empty((weights.shape[1], 1 + n))
    for e in range(len(theta)):
        heavy = z.T * weights[:, e]
        theta[e] = _solve(_product(heavy, z) + penalties, heavy @ targets[:, e])
    return theta[:, 1:], theta[:, 0] - theta[:, 1:] @ centre


@one_thread()
def best_penalty(z: Floats, targets: Floats) -> float:
    """Return the λ of least leave-one-out error for ‖y − c − Z θ‖² + λ ‖θ‖², Z `float64[M, F]`, y `float64[M]`.

    With the thin SVD Z − mean = U S Vᵀ and the hat matrix H = 1/M + U S²/(S² + λ) Uᵀ, the error at a pair left out is
    (y − H y)_i / (1 − H_ii), for every λ from two products with U. Source: Allen, 1974 (PRESS).
    """
    x, y = torch.from_numpy(z - z.mean(axis=0)), torch.from_numpy(targets - targets.mean())
    if len(x) <= x.shape[1]:
        squares, u = torch.linalg.eigh(x @ x.T)
        squares.clamp_(min=0)
    else:
        squares, v = torch.linalg.eigh(x.T @ x)
        squares.clamp_(min=0)
        u = x @ (v / torch.where(squares > 0, squares, 1).sqrt())
    shrink = squares[:, None] / (squares[:, None] + torch.from_numpy(_PENALTIES))  # [F, penalties]
    residual = y[:, None] - u @ (shrink * (u.T @ y)[:, None])
    left = 1 - 1 / len(x) - u**2 @ shrink
    errors = ((residual / left.clamp_(min=1e-12)) ** 2).mean(dim=0)
    return float(_PENALTIES[int(errors.argmin())])


@one_thread()
def _product(a: Floats, b: Floats) -> Floats:
    """a @ b on one thread. NumPy on two was seen to take ten times as long where other threads compute as well."""
    product: Floats = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product


@one_thread()
def _solve(matrix: Floats, right: Floats) -> Floats:
    """Return x with `matrix` x = `right`, on one thread too."""
    solution: Floats = torch.linalg.solve(torch.from_numpy(matrix), torch.from_numpy(right)).numpy()
    return solution


def _costs(n: int, order: int) -> Floats:
    """Return the penalty of each coefficient relative to a player's, `float64[F]`."""
    pairs = n * (n - 1) // 2 if order == 2 else 0
    return np.concatenate([[0.0], np.ones(n), np.full(pairs, _PAIR_PENALTY)])
