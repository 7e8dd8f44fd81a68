"""The surrogate: an ensemble of small networks fitted to measured worths, with a report of how far to trust it."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.text import as_saved
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.surrogate import flips, marginals, predict
from layercoop_fast.masks.types import Floats, Masks, check_masks
from layercoop_fast.surrogate.archive import read_archive, write_archive
from layercoop_fast.surrogate.fit import Fitted, fit_networks, refit_networks
from layercoop_fast.surrogate.link import Link
from layercoop_fast.surrogate.pairs import fittable_pairs
from layercoop_fast.surrogate.quality import Quality, Report, r_squared, report

_FORMAT = "layercoop_fast.surrogate/2"
_NETWORKS = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")


class NetworkGame:
    """Networks as a game on the scale on which they were fitted: `game(masks) -> float64[M]`, the mean of the networks.

    With `device` "cuda" (or "cuda:N") a GPU computes values and marginals, in float32 as on the CPU. This needs the
    extra `triton`; `RequestError` where there is no such device.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.n_players = networks.n_players

    def __call__(self, masks: Masks, /, *, device: str = "cpu") -> Floats:
        """Return the values, `float64[M]`, of masks `bool[M, n]`."""
        values: Floats = predict(self.networks, masks, device).mean(axis=1)
        return values

    def flips(self, masks: Masks, /) -> tuple[Floats, Floats]:
        """Return the values `float64[M]` of the masks and `float64[M, n]` of each mask with player i flipped."""
        return flips(self.networks, masks)

    def mean_marginals(self, masks: Masks, /, *, device: str = "cpu") -> tuple[Floats, Floats]:
        """Return the mean over the masks of f(m with i) − f(m without i), `float64[n]`, and its standard error."""
        return marginals(self.networks, masks, device)


class Surrogate:
    """f(m) = mean over e of [c_e + v_e · CELU(W_e m + b_e)] on the logarithm of the worth (see `Link`); a game.

    `surrogate(masks)` answers on the scale of the worths: exp(f) where the fit is to logarithms, else f.
    `surrogate.link_game` is the game f, in nats of log worth: on this scale contributions add up, and the value of the
    ensemble is the mean of its networks.

    Each network starts as the linear ridge of its own bootstrap sample and is trained as long as held-out masks gain,
    so at worst it is a ridge. One of its H hidden units carries the linear part (its pre-activation is never negative,
    where CELU is the identity), so that the kernels take plain networks.

    It warns once (`UserWarning`) when it is first asked about masks far from those it was fitted to: see `far`.

    Attributes:
        networks: the ensemble.
        link: between worths and the scale of the fit.
        quality: the report of the fit.
        masks: `bool[M, n]`, the masks fitted to.
        targets: `float64[M]`, their worths on the scale of the fit.
        counts: `uint8[M, E]`, how often the bootstrap sample of each network holds each pair.
        seed: of the fit.
        n_players: n.
        link_game: f as a game.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import Surrogate, stratified_masks
        >>> masks = stratified_masks(6, 200, seed=0, strata=[5, 4, 3])
        >>> worths = np.exp(masks @ np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) - 2.1)  # ratios: the fit is to logarithms
        >>> surrogate = Surrogate.fit(masks, worths, ensemble=2)
        >>> surrogate.quality.inside.r2 > 0.99, surrogate(masks[:3]).shape
        (True, (3,))
    """

    def __init__(
        self,
        networks: Networks,
        link: Link,
        quality: Quality,
        masks: Masks,
        targets: Floats,
        counts: npt.NDArray[np.uint8],
        seed: int,
    ) -> None:
        """Take what `fit` makes (see Attributes)."""
        self.networks, self.link, self.quality, self.seed = networks, link, quality, seed
        self.masks, self.targets, self.counts = masks, targets, counts
        self.n_players = networks.n_players
        self.link_game = NetworkGame(networks)
        self._warned = False
        kept = masks.sum(axis=1)
        self._kept_range = int(kept.min()), int(kept.max())
        self._centre = masks.mean(axis=0)
        centred = masks - self._centre
        self._metric: Floats = np.linalg.inv(centred.T @ centred + np.eye(self.n_players))
        self._reach = _LEVERAGES * float(self._leverage(masks).max())

    @classmethod
    def fit(
        cls,
        masks: Masks,
        worths: Floats,
        *,
        clusters: npt.NDArray[np.int64] | None = None,
        scale: str = "auto",
        ensemble: int = 8,
        hidden: int | None = None,
        seed: int = 0,
    ) -> Surrogate:
        """Fit to masks `bool[M, n]` and worths `float64[M]`.

        The result depends on the arguments alone, given the version of torch and the type of machine; no global random
        state is read or written.

        Args:
            masks: `bool[M, n]`.
            worths: `float64[M]`. A worth of exactly 0 has underflowed and counts as the least positive one.
            clusters: `int64[M]`; masks of one number were drawn together (see `Sample`), and a bootstrap sample holds
                all or none of them.
            scale: "log" fits the logarithm of the worths, "identity" the worths; "auto" takes the logarithm where no
                worth is negative (perplexity ratios; −NLL and −KL are logarithms already).
            ensemble: E, number of networks.
            hidden: H, units of each; None: 2n.
            seed: of bootstrap samples, initial weights and shuffles.

        Raises:
            RequestError: for arrays that do not fit together, for NaN or infinite worths with their count (see
                `finite_pairs`), and for a scale that the worths do not have.
        """
        masks, worths = fittable_pairs(masks, worths)
        link = Link.of(worths, scale)
        targets = link.forward(worths)
        fitted = fit_networks(masks, targets, clusters=clusters, ensemble=ensemble, hidden=hidden, seed=seed)
        return cls._of(fitted, link, masks, targets, seed)

    @classmethod
    def _of(cls, fitted: Fitted, link: Link, masks: Masks, targets: Floats, seed: int) -> Surrogate:
        return cls(fitted.networks, link, fitted.quality, masks, targets, fitted.counts, seed)

    def __call__(self, masks: Masks, /, *, device: str = "cpu") -> Floats:
        """Return the predicted worths, `float64[M]`, of masks `bool[M, n]`; `device` as in `NetworkGame`."""
        masks = check_masks(masks, self.n_players)
        self._warn_if_far(masks)
        return self.link.back(self.link_game(masks, device=device))

    def flips(self, masks: Masks, /) -> tuple[Floats, Floats]:
        """Return the worths `float64[M]` of the masks and `float64[M, n]` of each mask with player i flipped."""
        self._warn_if_far(masks)
        values, flipped = self.link_game.flips(masks)
        return self.link.back(values), self.link.back(flipped)

    @property
    def members(self) -> tuple[NetworkGame, ...]:
        """Each network as a game, on the scale of the fit."""
        return tuple(
            NetworkGame(replace(self.networks, **{name: getattr(self.networks, name)[e : e + 1] for name in _NETWORKS}))
            for e in range(self.networks.n_networks)
        )

    def spread(self, masks: Masks) -> Floats:
        """The standard deviation over the networks for masks `bool[M, n]`: `float64[M]`, on the scale of the fit.

        It estimates how far f would move if other masks had been measured; `quality.inside.coverage` says how often
        held-out errors were within it. Raises `RequestError` for an ensemble of one.
        """
        if self.networks.n_networks < 2:
            raise RequestError("one network alone has no spread: fit with ensemble=2 or more")
        spread: Floats = predict(self.networks, masks).std(axis=1, ddof=1)
        return spread

    def far(self, masks: Masks) -> Masks:
        """Which of masks `bool[M, n]` are far from the fitted ones, so that the fit is a guess there: `bool[M]`.

        A mask is far if it keeps at least two players fewer or more than every fitted mask, or if its leverage
        h(m) = (m − p)ᵀ (Σ (m' − p)(m' − p)ᵀ + I)⁻¹ (m − p) is over twice the largest of a fitted mask: it differs from
        them in a way in which they hardly differ among themselves (it lacks a player that all of them keep, say).
        """
        masks = check_masks(masks, self.n_players)
        kept = masks.sum(axis=1)
        low, high = self._kept_range
        far: Masks = (kept < low - 1) | (kept > high + 1) | (self._leverage(masks) > self._reach)
        return far

    def report(self, masks: Masks, worths: Floats) -> Report:
        """Judge the fit on masks `bool[M, n]` and worths `float64[M]`; the pairs it was fitted to would flatter it."""
        masks, worths = fittable_pairs(masks, worths)
        each = predict(self.networks, masks)
        return report(masks, self.link.forward(worths), each)

    def r2(self, masks: Masks, worths: Floats) -> float:
        """R² of masks `bool[M, n]` and worths `float64[M]`, on the scale of the fit (see `r_squared`)."""
        masks, worths = fittable_pairs(masks, worths)
        return r_squared(self.link.forward(worths), self.link_game(masks))

    def update(self, masks: Masks, worths: Floats) -> Surrogate:
        """Return a surrogate with masks `bool[M, n]` and worths `float64[M]` added; this one does not change.

        It is not fitted from scratch: the linear parts move by recursive least squares, and the networks are trained
        for a few more epochs on all pairs. Bootstrap samples are Poisson, so old pairs keep their counts. `quality`
        remains that of the first fit: call `report` with the new pairs *before* `update` for an unbiased new one.
        Source of the online bootstrap: Oza and Russell, 2001.
        """
        masks, worths = fittable_pairs(masks, worths)
        check_masks(masks, self.n_players)
        targets = self.link.forward(worths)
        old = Fitted(self.networks, self.counts, self.quality)
        together = np.concatenate([self.masks, masks]), np.concatenate([self.targets, targets])
        return self._of(refit_networks(old, *together, seed=self.seed), self.link, *together, self.seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with a JSON header, whole or not at all, replacing one that is there.

        The file holds the pairs too, so that a loaded surrogate can be updated.
        """
        header = {
            "scale": self.link.scale,
            "floor": self.link.floor,
            "seed": self.seed,
            "activation": self.networks.activation,
            "output": self.networks.output,
            "quality": asdict(self.quality),
        }
        arrays = {name: getattr(self.networks, name) for name in _NETWORKS}
        pairs = {"masks": self.masks, "targets": self.targets, "counts": self.counts}
        write_archive(Path(path), _FORMAT, header, {**arrays, **pairs})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Surrogate:
        """Read what `save` wrote; `RequestError` when the file is missing, corrupt, or something else."""
        header, arrays = read_archive(Path(path), _FORMAT, (*_NETWORKS, "masks", "targets", "counts"))
        with as_saved(path):
            weights = (arrays["hidden_weight"], arrays["hidden_bias"], arrays["output_weight"], arrays["output_bias"])
            networks = Networks(*weights, header["activation"], header["output"])
            link, quality = Link(header["scale"], float(header["floor"])), Quality.from_json(header["quality"])
            masks, targets, counts = arrays["masks"], arrays["targets"], arrays["counts"]
            shapes = [masks.shape, targets.shape, counts.shape]
            m = len(targets)
            wanted = [(m, networks.n_players), (m,), (m, networks.n_networks)]
            if m == 0 or shapes != wanted or [masks.dtype, targets.dtype, counts.dtype] != [bool, float, np.uint8]:
                raise ValueError(f"masks, targets and counts of shapes {shapes}, not {wanted}")
            return cls(networks, link, quality, masks, targets, counts, int(header["seed"]))

    def _leverage(self, masks: Masks) -> Floats:
        leverage = np.empty(len(masks))
        for low in range(0, len(masks), _BLOCK):
            centred = masks[low : low + _BLOCK] - self._centre
            leverage[low : low + _BLOCK] = ((centred @ self._metric) * centred).sum(axis=1)
        return leverage

    def _warn_if_far(self, masks: Masks) -> None:
        if self._warned or not (far := int(self.far(masks).sum())):
            return
        self._warned = True
        low, high = self._kept_range
        warnings.warn(
            f"{far} of {len(masks)} masks asked are far from those the surrogate was fitted to ({len(self.targets)} "
            f"masks that keep {low} to {high} of {self.n_players} players): it extrapolates there. This is said "
            "once; measure such masks too (stratified_masks with strata=), or see Surrogate.far",
            UserWarning,
            stacklevel=3,
        )


# A mask is far beyond this many times the largest fitted leverage; 1 would catch 1 of M masks drawn alike.
_LEVERAGES = 2.0

_BLOCK = 1 << 14  # masks at a time: [block, n] in float64 stays within the cache
