"""Compensations that others have published for removed layers, to compare repairs with on the same masks and text.

    found = compensate("ghosted", game, mask, texts)
    measured_with(game, mask, found.patches, found.maps)         # worth, NLL, NLL of each window

For a run of removed units let x be the full model's stream before the run and y the one behind it, of every token [H].

    replaceme       T = argmin Σ |T m − (y − x + m)|², m the output of the last linear map before the run, whose weight
                    becomes T times itself. Source: ReplaceMe, arXiv 2505.02819 (least squares).
    linear_patch    x → P diag(d) Pᵀ x, P the orthonormal Hadamard matrix, d_k = mean over windows of
                    mean |(Pᵀ y)_k| / mean |(Pᵀ x)_k|. Source: LinearPatch, arXiv 2505.24680, without training.
    ghosted         x → (I + M) x, M = argmin Σ |M x − (y − x)|². Source: Ghosted Layers, arXiv 2605.15491.
    prune_comp      x → a x, a = mean over tokens of |y| / |x|. Source: Prune&Comp, arXiv 2507.18212 (of its factor only
                    the idea is public: norms here are Euclidean).

All are fitted in one pass of the full model, each run by itself, as published. They get the windows that a repair holds
out, too, since they choose nothing on them. linear_patch and ghosted need a matrix on the stream, which no plain
checkpoint has; here it is applied in float32. The factor of prune_comp can be folded into weights: the stream divided
by it from the run on, which the norms do not see, leaves a division of every later output map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layercoop_fast.comparing.hadamard import hadamard
from layercoop_fast.comparing.request import COMPENSATIONS
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masks.types import Masks
from layercoop_fast.repair.gains import GainSite
from layercoop_fast.repair.patches import Patch, patch
from layercoop_fast.repair.ridge import NormalEquations, check_finite
from layercoop_fast.repair.sites import Site, find_site
from layercoop_fast.repair.streams import FullStreams
from layercoop_fast.repair.texts import RepairTexts

# Relative ridge of a least-squares fit: enough for an inverse in float64, too little to shrink anything.
_RIDGE = 1e-9


@dataclass(frozen=True)
class Run:
    """A run of removed units: from `first` on, `behind` being the next kept one or the number of units."""

    first: int
    behind: int


@dataclass(frozen=True, eq=False)
class Compensation:
    """A compensation of a mask.

    Attributes:
        name: in `COMPENSATIONS`.
        plain: whether a plain checkpoint can hold it.
        patches: the parameters that change.
        maps: matrices on the stream, float32 [H, H], by the unit behind which they are applied (`HeldOut.scores`).
        left_out: why a run has none, one line each.
    """

    name: str
    plain: bool
    patches: tuple[Patch, ...] = ()
    maps: dict[int, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"name": self.name, "plain": self.plain, "left_out": list(self.left_out)}


def check_fits(names: Sequence[str], game: ModelGame) -> None:
    """Raise `RequestError` for a compensation that this model's stream cannot have."""
    if "linear_patch" in names:
        _rotation(*_stream_of(game))


def compensate(name: str, game: ModelGame, mask: Masks, texts: RepairTexts) -> Compensation:
    """Fit a compensation for a mask, bool [n]; the model is unchanged.

    Raises `RequestError` for a stream that is not finite.
    """
    units = game.masked.players.unit_masks(mask[None])[0]
    return _FITS[name](game, removed_runs(units), [text.every for text in texts.texts])


def removed_runs(units: Masks) -> list[Run]:
    """The runs of removed units of a mask over units, bool [U], from shallow to deep."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ~units, [False]]).astype(np.int8)))
    return [Run(int(first), int(behind)) for first, behind in edges.reshape(-1, 2)]


def _across(game: ModelGame, runs: Sequence[Run], windows: Sequence[Tensor]) -> Iterator[tuple[Run, Tensor, Tensor]]:
    """For each run, by chunks of windows, the full model's streams before and behind it: float64 [w, T, H] each."""
    for ids in windows:
        full, at = FullStreams(game, ids), 0
        for run in runs:
            for unit in range(at, run.first):
                full.advance(unit)
            at = run.first
            for before, behind in full.across(run.first, run.behind):
                check_finite(before, behind)
                yield run, before.double(), behind.double()


def _ghosted(game: ModelGame, runs: Sequence[Run], windows: Sequence[Tensor]) -> Compensation:
    width, device = _stream_of(game)
    sums = {run: NormalEquations.empty(width, width, device=device) for run in runs}
    for run, before, behind in _across(game, runs, windows):
        sums[run].add(before.flatten(0, 1), (behind - before).flatten(0, 1))
    one = torch.eye(width, dtype=torch.float64, device=device)
    maps = {run.first - 1: (one + found.change(_RIDGE)).float() for run, found in sums.items()}
    return Compensation("ghosted", plain=False, maps=maps)


def _linear_patch(game: ModelGame, runs: Sequence[Run], windows: Sequence[Tensor]) -> Compensation:
    width, device = _stream_of(game)
    rotation = _rotation(width, device)
    scales = {run: torch.zeros(width, dtype=torch.float64, device=device) for run in runs}
    for run, before, behind in _across(game, runs, windows):
        sizes = [(stream @ rotation).abs().mean(1) for stream in (before, behind)]  # of each window, [w, H]
        scales[run] += (sizes[1] / sizes[0].clamp_min(torch.finfo(torch.float64).tiny)).sum(0)
    count = sum(len(ids) for ids in windows)
    maps = {run.first - 1: ((rotation * (scale / count)) @ rotation.t()).float() for run, scale in scales.items()}
    return Compensation("linear_patch", plain=False, maps=maps)


def _rotation(width: int, device: torch.device) -> Tensor:
    """The Hadamard matrix of a stream, float64 [width, width]."""
    found = hadamard(width)
    if found is None:
        raise RequestError(
            f"linear_patch rotates the stream by a Hadamard matrix, and none is known here for its {width} numbers: "
            "leave it out"
        )
    return found.to(device)


def _prune_comp(game: ModelGame, runs: Sequence[Run], windows: Sequence[Tensor]) -> Compensation:
    width, device = _stream_of(game)
    ratios = dict.fromkeys(runs, 0.0)
    for run, before, behind in _across(game, runs, windows):
        sizes = before.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
        ratios[run] += float((behind.norm(dim=-1) / sizes).sum())
    count = sum(ids.numel() for ids in windows)
    maps = {run.first - 1: ratio / count * torch.eye(width, device=device) for run, ratio in ratios.items()}
    return Compensation("prune_comp", plain=True, maps=maps)


@dataclass(frozen=True)
class _Output:
    """A site whose output is what a regression reads."""

    module: nn.Module

    def reads(self, handed: Tensor, returned: Tensor) -> Tensor:
        """The module's output [..., H]."""
        return returned


def _replaceme(game: ModelGame, runs: Sequence[Run], windows: Sequence[Tensor]) -> Compensation:
    width, device = _stream_of(game)
    sites: dict[Run, Site] = {}
    left_out = []
    for run in runs:
        site: Site | GainSite | None = None
        with suppress(RequestError):
            site = find_site(game.masked.players, run.first - 1) if run.first else None
        if isinstance(site, Site):
            sites[run] = site
        else:
            name = game.masked.players.label(run.first)
            left_out.append(f"the run from {name} on has no linear map before it whose output is added to the stream")
    sums = {run: NormalEquations.empty(width, width, device=device) for run in sites}
    for ids in windows:
        full, at = FullStreams(game, ids), 0
        for run, site in sites.items():
            for unit in range(at, run.first - 1):
                full.advance(unit)
            at = run.first - 1
            for inputs, added, _ in full.tokens(at, _Output(site.module), run.behind - run.first):
                sums[run].add(inputs, added[:, -width:])
    patches = [patch(sites[run], _times(sites[run], found.change(_RIDGE))) for run, found in sums.items()]
    return Compensation("replaceme", plain=True, patches=tuple(patches), left_out=tuple(left_out))


def _times(site: Site, change: Tensor) -> Tensor:
    """The change of a site, [H, n] or [H, n + 1] with its bias, that changes its output by `change` [H, H] times it."""
    parts = [site.weight.double()] + ([] if site.bias is None else [site.bias.double()[:, None]])
    return change @ torch.cat(parts, dim=1)


def _stream_of(game: ModelGame) -> tuple[int, torch.device]:
    """Width of the stream, and where it is."""
    embedding = game.masked.windows.context(1).embedding
    return int(embedding.shape[-1]), embedding.device


_FITS: dict[str, Callable[[ModelGame, Sequence[Run], Sequence[Tensor]], Compensation]] = {
    "replaceme": _replaceme,
    "linear_patch": _linear_patch,
    "ghosted": _ghosted,
    "prune_comp": _prune_comp,
}
assert _FITS.keys() == COMPENSATIONS.keys()
