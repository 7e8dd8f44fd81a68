"""The repair of a mask: gap by gap, from shallow to deep, each on the residual stream that the earlier repairs give.

For each gap (`repair/gaps.py`) the last linear map of the kept unit before it, or the gains of the norm that this unit
ends in, is refitted by a ridge regression to the difference from the full model's stream after the gap. Where the unit
ends in a gated MLP, some of its neurons become a linear map of the stream (`repair/neurons.py`). The strength of
the ridge is chosen by the NLL of each text's held-out windows: the mean of the NLL under the fit to all texts and of
that under a fit to the other texts only, since later text is partly of kinds that the fit has seen and partly not.
Every text has the same weight. A fit is kept only where the NLL rises on no text, neither under the fit to all texts
nor by that mean. All repairs together are kept only where the NLL rises on no text in windows that no choice has used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.forward import free_memory
from layercoop_fast.masked.windows import Windows
from layercoop_fast.masks.types import Masks, Progress
from layercoop_fast.repair.gains import GainSite
from layercoop_fast.repair.gaps import Gap, find_gaps
from layercoop_fast.repair.held_out import HeldOut
from layercoop_fast.repair.neurons import GateInput, Neurons, NeuronSite, find_gated, with_direction
from layercoop_fast.repair.patches import Patch, applied, patch
from layercoop_fast.repair.ridge import Equations
from layercoop_fast.repair.run_maps import RunMaps
from layercoop_fast.repair.sites import Site, find_site
from layercoop_fast.repair.streams import Streams
from layercoop_fast.repair.strengths import USUAL, best_trial
from layercoop_fast.repair.texts import RepairTexts

AnySite: TypeAlias = Site | GainSite | NeuronSite

# Most of the free memory that the kept streams may take; where they need more, they are computed again for each gap.
_STREAM_SHARE = 0.25


def kept_units(units: Masks) -> list[int]:
    """The kept units of a mask over units, bool [U], from shallow to deep."""
    return [int(unit) for unit in np.flatnonzero(units)]


@dataclass(frozen=True, eq=False)
class _Trial:
    """A gap's repair at one strength.

    Attributes:
        strength: of the ridge.
        patch: under the fit to all texts.
        seen: held-out NLL of each text under the fit to all texts.
        unseen: held-out NLL of each text under the fit to the other texts.
        score: mean of both over all texts.
        linear: number of linear neurons.
    """

    strength: float
    patch: Patch
    seen: list[float]
    unseen: list[float]
    score: float
    linear: int


class GapByGap:
    """The fit for one mask over units on some texts."""

    def __init__(
        self, game: ModelGame, units: Masks, texts: RepairTexts, *, neurons: bool, maps: RunMaps | None = None
    ) -> None:
        self.game = game
        self.neurons = neurons
        # A gap is judged with the maps of those behind it: without them a model of many gaps predicts nothing.
        self.maps = {} if maps is None else {one.unit: maps.patches[one] for one in maps.kept(units) if one.run}
        self.later: list[Patch] = []
        self.texts = texts.texts
        self.kept = kept_units(units)
        self.gaps = find_gaps(units)
        width = next(game.masked.skeleton.model.parameters()).element_size() * int(
            game.masked.skeleton.model.config.get_text_config(decoder=True).hidden_size
        )
        fits = 2 * texts.tokens * width <= free_memory(game.masked.skeleton.device) * _STREAM_SHARE
        self.streams = [Streams(game, text.fit, keep=fits) for text in self.texts]
        self.choice = [self._heldout(text.choice) for text in self.texts]
        # The best strengths of the gaps of one mask are similar: each gap starts with the previous one's.
        self.start = USUAL

    def _heldout(self, ids: Tensor) -> HeldOut:
        return HeldOut(self.game, Windows(self.game.masked.skeleton, ids))

    def run(self, progress: Progress | None) -> tuple[tuple[Patch, ...], dict[str, Any]]:
        """Repair one gap after another; return the patches that are kept and the record."""
        patches: list[Patch] = []
        rows = []
        for number, gap in enumerate(self.gaps):
            self.later = [self.maps[other.unit] for other in self.gaps[number + 1 :] if other.unit in self.maps]
            row, found = self._repair(gap, patches)
            rows.append({**self._names(gap), **row})
            if found is not None:
                patches.append(found)
            if progress is not None:
                progress("gaps repaired", number + 1, len(self.gaps))
        record: dict[str, Any] = {"gaps": rows}
        if not patches:
            record["reason"] = _why_none(rows)
            return (), record
        check = [self._heldout(text.check) for text in self.texts]
        before = self._means(check)
        with applied(patches):
            after = self._means(check)
        record["nll"] = self._before_after(before, after)
        if not _no_worse(after, before):
            record["reason"] = "it raises the NLL of a text on held-out windows that no choice has used"
            return (), record
        return tuple(patches), record

    def _names(self, gap: Gap) -> dict[str, Any]:
        label = self.game.masked.players.label
        return {"into": label(gap.unit), "removed": [label(unit) for unit in gap.removed]}

    def _repair(self, gap: Gap, patches: Sequence[Patch]) -> tuple[dict[str, Any], Patch | None]:
        """Repair one gap: its row of the record, and its patch where that helps."""
        try:
            site = find_site(self.game.masked.players, gap.unit)
        except RequestError as refused:
            return {"strength": None, "reason": str(refused)}, None
        with applied(patches):
            for text in self.choice:
                text.advance(gap.unit, self.kept)
        with applied([*patches, *self.later]):
            before = self._means(self.choice)
        row: dict[str, Any] = {"strength": None}
        try:
            # The map alone is tried where the neurons may not be used at any strength.
            for one, sums in self._refits(gap, site, patches):
                row["map"] = one.name
                best = self._best(one, sums, patches, before)
                if best is not None:
                    return self._row(row, before, one, best), best.patch
        except RequestError as broken:  # streams that are not finite, or all zero
            return {"strength": None, "reason": str(broken)}, None
        return {**row, "reason": "it raises the NLL of a text's held-out windows at every strength"}, None

    def _refits(
        self, gap: Gap, site: Site | GainSite, patches: Sequence[Patch]
    ) -> Iterator[tuple[AnySite, list[Equations]]]:
        """What can be refitted before a gap, with sums for each text: neurons where wanted and possible; the site."""
        gated = find_gated(self.game.masked.players, site) if self.neurons else None
        if gated is not None:
            watched = GateInput(gated.module)
            texts = (streams.tokens(gap, self.kept, watched, patches) for streams in self.streams)
            gated = with_direction(gated, (inputs for chunks in texts for inputs, *_ in chunks))
        if gated is None:
            yield site, [self._sums(streams, gap, site, patches) for streams in self.streams]
            return
        sums = [self._sums(streams, gap, gated, patches) for streams in self.streams]
        yield gated, sums
        yield site, [each.alone() for each in sums]

    def _best(
        self, site: AnySite, sums: Sequence[Equations], patches: Sequence[Patch], before: Sequence[float]
    ) -> _Trial | None:
        """The repair of a site at the best strength; None where none may be used."""
        total = sums[0]
        for other in sums[1:]:
            total = total + other
        return best_trial(lambda strength: self._trial(strength, total, sums, site, patches, before), self.start)

    def _row(self, row: dict[str, Any], before: Sequence[float], site: AnySite, best: _Trial) -> dict[str, Any]:
        """The record of a gap that was repaired."""
        self.start = best.strength
        row = {**row, "strength": best.strength, "nll": self._before_after(before, best.seen)}
        if isinstance(site, NeuronSite):
            row["linear_neurons"] = best.linear
        if len(self.texts) > 1:
            row["nll_unseen_domain"] = self._before_after(before, best.unseen)
        return row

    def _trial(
        self,
        strength: float,
        total: Equations,
        sums: Sequence[Equations],
        site: AnySite,
        patches: Sequence[Patch],
        before: Sequence[float],
    ) -> _Trial | None:
        """A gap's repair at a strength; None where it raises the NLL of a text."""
        change = total.change(strength)
        found = patch(site, change)
        with applied([*patches, found, *self.later]):
            seen = self._means(self.choice)
        if not _no_worse(seen, before):
            return None
        unseen = self._unseen(total, sums, change, strength, site, patches)
        # Later text is partly of kinds that the fit has seen and partly not: both NLLs of a text have the same weight.
        between = [(own + other) / 2 for own, other in zip(seen, unseen, strict=True)]
        if not _no_worse(between, before):
            return None
        linear = len(change.up) if isinstance(change, Neurons) else 0
        return _Trial(strength, found, seen, unseen, float(np.mean(between)), linear)

    def _sums(self, streams: Streams, gap: Gap, site: AnySite, patches: Sequence[Patch]) -> Any:
        sums = site.equations()
        for chunk in streams.tokens(gap, self.kept, site, patches):
            sums.add(*chunk)
        return sums

    def _unseen(
        self,
        total: Equations,
        sums: Sequence[Equations],
        change: Any,
        strength: float,
        site: AnySite,
        patches: Sequence[Patch],
    ) -> list[float]:
        """Each text's held-out NLL under the fit to the other texts; with one text only, under the fit to itself.

        Which neurons stay is what the fit to all texts has chosen; what they add is fitted to the other texts alone.
        """
        found = []
        for own, text in zip(sums, self.choice, strict=True):
            others = total - own if len(sums) > 1 else total
            with applied([*patches, patch(site, others.again(change, strength)), *self.later]):
                found.append(text.nll(self.kept))
        return found

    def _means(self, texts: Sequence[HeldOut]) -> list[float]:
        return [text.nll(self.kept) for text in texts]

    def _before_after(self, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
        """NLLs before and after by text, ready for JSON: None where they are not finite."""
        pairs = [[value if np.isfinite(value) else None for value in pair] for pair in zip(before, after, strict=True)]
        return {text.spec: {"before": old, "after": new} for text, (old, new) in zip(self.texts, pairs, strict=True)}


def _why_none(rows: Sequence[dict[str, Any]]) -> str:
    """Why no gap has a repair: the reasons of all gaps, where no repair could be fitted at all."""
    if not rows:
        return "nothing is removed"
    if any("map" in row for row in rows):
        return "no repair of any gap helps on the held-out windows of every text"
    return "; ".join(dict.fromkeys(str(row["reason"]) for row in rows))


def _no_worse(after: Sequence[float], before: Sequence[float]) -> bool:
    """Whether the NLL rises on no text; NaN counts as a rise. `after` may be empty."""
    return all(new <= old for new, old in zip(after, before, strict=False))
