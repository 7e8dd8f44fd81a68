"""Finds the rows of a comparison: kept ones, or new ones by running a method and measuring what it chose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layercoop_fast.comparing.compensations import compensate
from layercoop_fast.comparing.flap import flap
from layercoop_fast.comparing.judges import Changed, Judge
from layercoop_fast.comparing.paired import document_p, paired_p
from layercoop_fast.comparing.rows import Judged, KeptRows, Measured, Row, content_of, digest_of, row_of
from layercoop_fast.export.players import ExportablePlayers
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.repair.fit import fit_repair, measured_with
from layercoop_fast.repair.texts import RepairTexts
from layercoop_fast.search.base import get_method

WIDTH_METHODS = ("flap",)
# Methods that measure as many masks as their budget allows.
_BUDGETED = ("coop", "official", "evopress", "random")


@dataclass(frozen=True, kw_only=True)
class HowFound:
    """How rows are found.

    Attributes:
        fitted: the texts that repairs and other compensations are fitted to; None where there are none.
        repair: whether every choice is also measured with a repair.
        compute: of repairs (`RepairOptions.repair_compute`).
        compensations: other compensations that every choice is also measured with.
        seed: of all that is drawn.
        budget: masks that a method may measure.
    """

    fitted: RepairTexts | None
    repair: bool
    compute: str
    compensations: Sequence[str]
    seed: int
    budget: int | None


@dataclass(frozen=True, eq=False)
class RowFinder:
    """Finds rows.

    Attributes:
        games: the searched text first, then the others.
        judges: what rows are measured by besides texts.
        how: what is asked for.
        allowed: the masks to choose from.
        kept: finished rows of earlier comparisons.
        progress: called with (stage, done, total).
    """

    games: Sequence[ModelGame]
    judges: Sequence[Judge]
    how: HowFound
    allowed: ExportablePlayers
    kept: KeptRows
    progress: Progress

    def full(self) -> Row:
        """The row of the full model."""
        everything = np.ones(self.games[0].n_players, dtype=np.bool_)
        return Row("full", 0, [], 0, 0, 0.0, 0.0, self._on_texts(everything), judged=self._judged(Changed(everything)))

    def has(self, method: str, size: int) -> bool:
        """Whether the rows of a method at a size are kept."""
        return all(self.kept.find(self._request(method, size, after)) is not None for after in self._afters(method))

    def rows(self, method: str, size: int) -> Iterator[Row]:
        """Give the row of a method at a size, then those with a repair and other compensations where these are asked.

        Raises `RequestError` and `RunError` where the method has none.
        """
        row, mask = self._plain(method, size)
        yield row
        if mask is not None:
            for after in self._afters(method)[1:]:
                yield self._compensated(row, mask, after)

    def _afters(self, method: str) -> list[str]:
        """What the choice of a method is measured with: "" for nothing, "repair", names of compensations."""
        if method in WIDTH_METHODS:
            return [""]
        return ["", *(["repair"] if self.how.repair else []), *self.how.compensations]

    def _plain(self, method: str, size: int) -> tuple[Row, Masks | None]:
        """The row without a repair, and the chosen mask (bool [n]); None for a method that removes width."""
        request = self._request(method, size, "")
        content = self.kept.find(request)
        if content is None:
            row, mask = self._found(method, size)
            goes = None if mask is None else np.flatnonzero(~mask).tolist()
            self.kept.keep(request, content_of(row, goes))
            return row, mask
        mask = None
        if content["mask"] is not None:
            mask = np.ones(self.games[0].n_players, dtype=np.bool_)
            mask[content["mask"]] = False
        return row_of(method, size, content, self._specs), mask

    def _compensated(self, row: Row, mask: Masks, after: str) -> Row:
        """The row of the same mask with its repair, or with another compensation."""
        request = self._request(row.method, row.n_remove, after)
        content = self.kept.find(request)
        if content is None:
            found = self._fitted(row, mask, after)
            self.kept.keep(request, content_of(found, np.flatnonzero(~mask).tolist()))
        else:
            found = row_of(row.method, row.n_remove, content, self._specs)
        texts = [
            replace(one, p_unrepaired=paired_p(one.window_nll - before.window_nll))
            for one, before in zip(found.texts, row.texts, strict=True)
        ]
        judged = {
            name: replace(one, p_unrepaired=document_p(one.values, row.judged[name].values))
            for name, one in found.judged.items()
        }
        return replace(found, texts=texts, judged=judged)

    def _fitted(self, row: Row, mask: Masks, after: str) -> Row:
        """Fit a repair or another compensation to a mask, and measure the model with it."""
        how = self.how
        assert how.fitted is not None  # where anything is asked for behind the choice, texts are loaded
        began = time.perf_counter()
        if after == "repair":
            repaired = fit_repair(self.games[0], mask, how.fitted, compute=how.compute, progress=self.progress)
            row = replace(row, repair=repaired.record)
            changed = Changed(mask, repaired.patches)
        else:
            other = compensate(after, self.games[0], mask, how.fitted)
            row = replace(row, compensation=other.record)
            changed = Changed(mask, other.patches, other.maps)
        row = replace(row, seconds=row.seconds + time.perf_counter() - began)
        if not changed.patches and not changed.maps:
            return row
        measured = [_measured(game, measured_with(game, mask, changed.patches, changed.maps)[2]) for game in self.games]
        return replace(row, texts=measured, judged=self._judged(changed))

    def _found(self, method: str, size: int) -> tuple[Row, Masks | None]:
        """Run one method at one size; it begins with nothing known."""
        game = self.games[0].run()
        began = time.perf_counter()
        if method in WIDTH_METHODS:
            blocks = list(game.masked.skeleton.blocks)
            share = round(size / game.n_players * sum(one.numel() for block in blocks for one in block.parameters()))
            rival = flap(game, share)
            seconds = time.perf_counter() - began
            measured = [_measured(one, rival.window_nll(one.masked.windows.ids)) for one in self.games]
            return Row(method, size, None, rival.removed_params, 0, passes(game), seconds, measured), None
        limit = self.how.budget if method in _BUDGETED else None
        search = get_method(method)
        choice = search(game, size, seed=self.how.seed, budget=limit, allowed=self.allowed, progress=self.progress)
        seconds = time.perf_counter() - began
        units = np.flatnonzero(~game.masked.players.unit_masks(choice.mask[None])[0])
        removed = [game.masked.players.label(int(unit)) for unit in units]
        params = sum(game.masked.players.n_parameters(int(unit)) for unit in units)
        texts, judged = self._on_texts(choice.mask), self._judged(Changed(choice.mask))
        row = Row(method, size, removed, params, choice.n_masks, passes(game), seconds, texts, judged=judged)
        return row, choice.mask

    def _on_texts(self, mask: Masks) -> list[Measured]:
        return [_measured(game, game.evaluate(mask[None]).window_nll[0]) for game in self.games]

    def _judged(self, model: Changed) -> dict[str, Judged]:
        return {judge.name: Judged(judge.of(model)) for judge in self.judges}

    @property
    def _specs(self) -> list[str]:
        return [game.calibration.spec for game in self.games]

    def _request(self, method: str, size: int, after: str) -> dict[str, Any]:
        """All that a row depends on: the model, texts and numerics by their fingerprints, and what was asked."""
        game, *others = self.games
        return {
            "game": game.fingerprints,
            "texts": [one.fingerprints["calibration"] for one in others],
            "judges": {judge.name: judge.fingerprint() for judge in self.judges},
            "method": method,
            "remove": size,
            "seed": self.how.seed,
            "budget": self.how.budget if method in _BUDGETED else None,
            "after": self._fit_of(after) if after else None,
        }

    def _fit_of(self, after: str) -> dict[str, Any]:
        """What a repair or another compensation depends on."""
        assert self.how.fitted is not None
        texts = [
            [domain.spec, *(digest_of(ids.cpu().numpy()) for ids in (domain.fit, domain.choice, domain.check))]
            for domain in self.how.fitted.texts
        ]
        return {"name": after, "compute": self.how.compute if after == "repair" else None, "texts": texts}


def passes(game: ModelGame) -> float:
    """What a game has measured, in passes of the full model over its text."""
    return game.evaluations.token_evals / (game.masked.skeleton.n_layers * game.masked.windows.ids.numel())


def _measured(game: ModelGame, window_nll: Floats) -> Measured:
    domains = game.calibration.domains
    return Measured(game.calibration.spec, window_nll if domains is None else domains.weighted(window_nll))
