"""Compares methods: what each removes at each size, what is left on each text, and what the search cost.

    compared = compare("model", calibration="novels.txt", texts=["code.txt"], remove=[3, 6], methods=["coop", "sleb"])
    compared.record            # JSON: one row for each method and size, and a second one with `repair`

Every method begins with nothing known, so its cost is that of a run of its own; costs are counted in passes of the full
model over the calibration text (`Evaluations.token_evals`). A mask that one method has measured is all the same not
measured again for another (`game/runs.py`), nor for a later comparison with the same store, which also keeps the
finished rows. Differences between methods are tested window by window: on the same windows their NLLs vary together, so
perplexities alone do not show which differences are noise.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layercoop_fast.comparing.flap import flap
from layercoop_fast.comparing.forecast import Ahead, ahead_of
from layercoop_fast.comparing.request import CompareRequest
from layercoop_fast.comparing.rows import KeptRows, Measured, Row, content_of, row_of, rows_file
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.players import ExportablePlayers
from layercoop_fast.game.item_utility import ChoiceUtility
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.options import GameOptions
from layercoop_fast.game.other_text import check_unseen, on_other_text
from layercoop_fast.game.utility import UTILITIES, get_utility
from layercoop_fast.inputs.options import takes, values_of
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.repair.fit import Repaired, check_repairable, fit_repair, repaired_windows
from layercoop_fast.repair.options import check_compute
from layercoop_fast.repair.texts import RepairTexts, check_texts, texts_to_fit
from layercoop_fast.report.html.compared import comparison_fragment
from layercoop_fast.search.base import check_n_remove, get_method
from layercoop_fast.texts.calibration import check_readable
from layercoop_fast.texts.mixture import texts_of
from layercoop_fast.texts.protocols import check_chosen_on

WIDTH_METHODS = ("flap",)
# Methods that measure as many masks as their budget allows.
_BUDGETED = ("coop", "official", "evopress", "random")
# A budget beyond this would not fit into memory before it was ever measured.
_MOST_MASKS = 10_000_000
# Sign flips of a paired test.
_FLIPS = 9_999


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows of a comparison.

    Attributes:
        full: the full model.
        rows: one for each method and size, and a second one where it is repaired.
        about: what was compared on, as JSON can hold it.
    """

    full: Row
    rows: list[Row]
    about: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**self.about, "full": self.full.as_json(), "rows": [row.as_json() for row in self.rows]}

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        return comparison_fragment(self.record)


@takes(CompareRequest)
def compare(
    model: str,
    *,
    on_progress: Progress | None = None,
    on_ahead: Callable[[Ahead], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    **keywords: Any,
) -> Comparison:
    """Run every method at every size and measure what is left on every text.

    Args:
        model: checkpoint folder, or hub name.
        on_progress: called with (stage, done, total).
        on_ahead: called once with what is ahead, before the first row is looked for.
        on_row: called with the full model's row and then with each row as soon as it is there, kept ones included.
            It is not known by then which rows are as good as the best of their size.
        keywords: the fields of `CompareRequest` (`comparing/request.py`); those of the game are the keywords of
            `ModelGame.from_pretrained`.

    A method that refuses a size (an exhaustive search of too many masks, a run of groups that do not follow each
    other), or that fails at it, has no row there, and `about["refused"]` says why.

    Raises `RequestError` before anything is searched for an unknown method, a utility of items with options, a text
    that cannot be read, a size out of range or one with no exportable mask; and where every method refuses every size.

    Example:
        >>> from layercoop_fast import compare
        >>> table = compare("my-model", calibration="self", windows=2, tokens=16, remove=[1], methods=["sleb", "ppl"])
        >>> [(row.method, len(row.removed)) for row in table.rows]
        [('sleb', 1), ('ppl', 1)]
    """
    request = CompareRequest(**keywords)
    searched = _check(request)
    seed, texts, sizes = request.seed, request.texts, sorted(set(request.remove))
    kept = KeptRows(None if request.store is None else rows_file(request.store))
    wanted = [(size, method) for size in sizes for method in request.methods]
    steps = _Steps(on_progress, len(wanted))
    for text in texts:
        check_unseen(text, searched)
    asked = values_of(request, GameOptions)
    opened = ModelGame.from_pretrained(model, request.calibration, **asked, on_progress=steps)
    with closing(opened) as game:
        allowed = ExportablePlayers(game.checkpoint.model.config, game.masked.players)
        for size in request.remove:
            check_n_remove(game.n_players, size)
            allowed.check_size(game.n_players - size)
        fitted = None
        if request.repair:
            check_repairable(game)
            fitted = texts_to_fit(
                game,
                request.repair_text,
                request.repair_tokens,
                required=True,
                heldout=texts,
                seed=seed,
                progress=steps,
            )
        tokens = int(game.calibration.ids.shape[1])
        games = [game, *(on_other_text(game, text, request.text_windows, tokens, seed, stored=True) for text in texts)]
        everything = np.ones(game.n_players, dtype=np.bool_)
        full = Row("full", 0, [], 0, 0, 0.0, 0.0, _on_texts(games, everything))
        table = _Table(games, fitted, request.repair_compute, seed, request.budget, allowed, kept, steps)
        if on_ahead is not None:
            missing = [(size, method) for size, method in wanted if not table.has(method, size)]
            on_ahead(
                ahead_of(games, missing, len(wanted), request.budget, seed, 0 if fitted is None else fitted.tokens)
            )
        rows: list[Row] = []
        refused: list[dict[str, Any]] = []
        tell = on_row or (lambda row: None)
        tell(full)
        for number, (size, method) in enumerate(wanted):
            steps.at(number)
            try:
                for row in table.rows(method, size):
                    rows.append(row)
                    tell(row)
            except (RequestError, RunError) as error:  # the rows of other methods are kept
                if isinstance(error, RunError) and error.__cause__ is not None:
                    raise  # a full disk, say, which the next row would meet as well
                refused.append({"method": method, "remove": size, "reason": str(error)})
        steps.at(len(wanted))
        if not rows:
            raise RequestError(refused[0]["reason"])
        for size in sizes:
            for repaired in (False, True):
                _judge([row for row in rows if row.n_remove == size and (row.repair is not None) == repaired])
        spent = round(_passes(game), 2)
        return Comparison(full, rows, {**_about(games, fitted, seed), "passes_spent": spent, "refused": refused})


def _check(request: CompareRequest) -> list[str]:
    """The SPECs that are searched on; `RequestError` for what can be seen before anything is opened."""
    if not request.remove or not request.methods:
        raise RequestError("a comparison needs at least one size to remove and one method")
    for name in request.methods:
        if name not in WIDTH_METHODS:
            get_method(name)
    if request.budget is not None and not 1 <= request.budget <= _MOST_MASKS:
        raise RequestError(f"the budget must be 1 to {_MOST_MASKS:,} masks, not {request.budget}")
    found = get_utility(request.utility)
    if isinstance(found, ChoiceUtility):
        raise RequestError(
            f"a comparison judges methods by the perplexity of texts, and the utility {found.name} is one of items "
            f"with options: choose from {', '.join(UTILITIES)}"
        )
    searched = [spec for spec, _ in texts_of(request.calibration)]
    check_chosen_on(searched)
    _check_readable([*searched, *request.texts])
    if request.repair:
        check_texts(request.repair_text, request.repair_tokens)
        check_compute(request.repair_compute)
        _check_readable(request.repair_text or ())
    return searched


def _check_readable(texts: Sequence[str]) -> None:
    """Raise `RequestError` for a text that cannot be read, before minutes have been spent on others."""
    for spec in texts:
        check_readable(spec)


class _Steps:
    """Reports how many rows are done, with each report of progress within one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done: int | None = None

    def at(self, done: int) -> None:
        """Report that this many rows are done."""
        self._done = done
        self._tell()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._tell()
            self._progress(stage, done, total)

    def _tell(self) -> None:
        if self._progress is not None and self._done is not None:
            self._progress("methods and sizes", self._done, self._total)


@dataclass(frozen=True, eq=False)
class _Table:
    """Finds rows: kept ones, or new ones by running a method and measuring what it chose."""

    games: Sequence[ModelGame]
    fitted: RepairTexts | None
    compute: str
    seed: int
    budget: int | None
    allowed: ExportablePlayers
    kept: KeptRows
    progress: Progress

    def has(self, method: str, size: int) -> bool:
        """Whether the rows of a method at a size are kept."""
        asked = [self._request(method, size)]
        if self._repairs(method):
            asked.append(self._request(method, size, self.fitted))
        return all(self.kept.find(one) is not None for one in asked)

    def rows(self, method: str, size: int) -> Iterator[Row]:
        """Give the row of a method at a size, then the repaired one where repairs are fitted.

        Raises `RequestError` and `RunError` where the method has none.
        """
        row, mask = self._plain(method, size)
        yield row
        if self.fitted is not None and mask is not None:
            yield self._with_repair(row, mask, self.fitted)

    def _repairs(self, method: str) -> bool:
        return self.fitted is not None and method not in WIDTH_METHODS

    def _plain(self, method: str, size: int) -> tuple[Row, Masks | None]:
        """The row without a repair, and the chosen mask (bool [n]); None for a method that removes width."""
        request = self._request(method, size)
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

    def _with_repair(self, row: Row, mask: Masks, fitted: RepairTexts) -> Row:
        """The row of the same mask after its repair."""
        request = self._request(row.method, row.n_remove, fitted)
        content = self.kept.find(request)
        if content is None:
            began = time.perf_counter()
            repaired = fit_repair(self.games[0], mask, fitted, compute=self.compute, progress=self.progress)
            found = _repaired(row, self.games, repaired, row.seconds + time.perf_counter() - began)
            self.kept.keep(request, content_of(found, np.flatnonzero(~mask).tolist()))
        else:
            found = row_of(row.method, row.n_remove, content, self._specs)
        texts = [
            replace(after, p_unrepaired=paired_p(after.window_nll - before.window_nll))
            for after, before in zip(found.texts, row.texts, strict=True)
        ]
        return replace(found, texts=texts)

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
            return Row(method, size, None, rival.removed_params, 0, _passes(game), seconds, measured), None
        limit = self.budget if method in _BUDGETED else None
        search = get_method(method)
        choice = search(game, size, seed=self.seed, budget=limit, allowed=self.allowed, progress=self.progress)
        seconds = time.perf_counter() - began
        units = np.flatnonzero(~game.masked.players.unit_masks(choice.mask[None])[0])
        removed = [game.masked.players.label(int(unit)) for unit in units]
        params = sum(game.masked.players.n_parameters(int(unit)) for unit in units)
        texts = _on_texts(self.games, choice.mask)
        return Row(method, size, removed, params, choice.n_masks, _passes(game), seconds, texts), choice.mask

    @property
    def _specs(self) -> list[str]:
        return [game.calibration.spec for game in self.games]

    def _request(self, method: str, size: int, fitted: RepairTexts | None = None) -> dict[str, Any]:
        """All that a row depends on: the model, texts and numerics by their fingerprints, and what was asked."""
        game, *others = self.games
        repair = None
        if fitted is not None:
            texts = [
                [domain.spec, *(_digest(ids.cpu().numpy()) for ids in (domain.fit, domain.choice, domain.check))]
                for domain in fitted.texts
            ]
            repair = {"compute": self.compute, "texts": texts}
        return {
            "game": game.fingerprints,
            "texts": [one.fingerprints["calibration"] for one in others],
            "method": method,
            "remove": size,
            "seed": self.seed,
            "budget": self.budget if method in _BUDGETED else None,
            "repair": repair,
        }


def _digest(ids: NDArray[np.int64]) -> str:
    return hashlib.sha256(f"{ids.shape}".encode() + ids.astype("<i8").tobytes()).hexdigest()


def _about(games: Sequence[ModelGame], fitted: RepairTexts | None, seed: int) -> dict[str, Any]:
    """What was compared on, as JSON can hold it."""
    game = games[0]
    repair = None
    if fitted is not None:
        repair = {
            "texts": [domain.spec for domain in fitted.texts],
            "left_out": list(fitted.left_out.values()),
            "tokens": fitted.tokens,
        }
    return {
        "model": game.checkpoint.name,
        "players": game.masked.players.kind,
        "n_players": game.n_players,
        "texts": [one.calibration.spec for one in games],
        "windows": [one.masked.windows.n_windows for one in games],
        "tokens": int(game.calibration.ids.shape[1]),
        "seed": seed,
        "fingerprints": game.fingerprints,
        "repair": repair,
    }


def _repaired(row: Row, games: Sequence[ModelGame], repaired: Repaired, seconds: float) -> Row:
    """The row of the same mask after its repair, which took so long with the search."""
    measured = [
        _measured(game, repaired_windows(game, repaired)[2]) if repaired.kept else before
        for game, before in zip(games, row.texts, strict=True)
    ]
    return replace(row, seconds=seconds, texts=measured, repair=repaired.record)


def _passes(game: ModelGame) -> float:
    return game.evaluations.token_evals / (game.masked.skeleton.n_layers * game.masked.windows.ids.numel())


def _on_texts(games: Sequence[ModelGame], mask: Masks) -> list[Measured]:
    return [_measured(game, game.evaluate(mask[None]).window_nll[0]) for game in games]


def _measured(game: ModelGame, window_nll: Floats) -> Measured:
    domains = game.calibration.domains
    return Measured(game.calibration.spec, window_nll if domains is None else domains.weighted(window_nll))


def _judge(rows: list[Row]) -> None:
    """Test each text's results of the rows of one size against the best of them."""
    for text in range(len(rows[0].texts) if rows else 0):
        column = [row.texts[text] for row in rows]
        means = np.array([one.window_nll.mean() for one in column])
        best = column[int(np.argmin(np.where(np.isfinite(means), means, np.inf)))]
        for row, one in zip(rows, column, strict=True):
            p = 1.0 if one is best else paired_p(one.window_nll - best.window_nll)
            row.texts[text] = replace(one, p_best=p)


def paired_p(differences: Floats, *, flips: int = _FLIPS, seed: int = 0) -> float | None:
    """Two-sided p-value of differences (float64 [W]) that were symmetric about zero, by random signs.

    None where one is not finite, 1 where all are zero. No smaller than 1 / (flips + 1).
    Source: Fisher, The Design of Experiments (1935), chapter 3.
    """
    if not np.isfinite(differences).all():
        return None
    signs = np.random.default_rng(seed).integers(0, 2, (flips, len(differences)), dtype=np.int8) * 2 - 1
    observed = abs(float(differences.sum()))
    # Sums of the same numbers in other orders differ by rounding.
    reached = np.abs(signs @ differences) >= observed * (1 - 1e-12)
    return float((1 + np.count_nonzero(reached)) / (1 + flips))
