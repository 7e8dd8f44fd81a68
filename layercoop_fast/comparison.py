"""Methods beside each other: what each removes at each size, what is left on each text, and what finding it cost.

    compared = compare("model", calibration="novels.txt", texts=["code.txt"], remove=[3, 6], methods=["coop", "sleb"])
    compared.record            # JSON: one row a method and size, with `repair` a second one beside it

Every method begins with nothing known, so costs are those of a run of its own; they are counted in passes of the full
model over the calibration text (`Evaluations.token_evals`). Differences between methods are judged window by window: on
the same windows their NLLs move together, and a difference that is far from zero in perplexities may be noise or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.export.players import ExportablePlayers
from layercoop_fast.game.beside import same_model_on
from layercoop_fast.game.choice_utility import ChoiceUtility
from layercoop_fast.game.mixture import Texts
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.protocol import Floats, Masks, Progress
from layercoop_fast.game.utility import UTILITIES, get_utility
from layercoop_fast.repair.fit import check_repairable, fit_repair, repaired_windows
from layercoop_fast.repair.texts import DEFAULT_TOKENS, Domains, texts_to_fit
from layercoop_fast.report.html.compared import comparison_fragment
from layercoop_fast.search.base import check_n_remove, finite_or_none, get_method, perplexity
from layercoop_fast.width.flap import flap

# The methods compared where none are named: those that need no budget of their own to be fair.
DEFAULT_METHODS = ("coop", "sleb", "shortgpt", "angular", "ppl")
WIDTH_METHODS = ("flap",)
# Methods that measure as many masks as they are given.
_BUDGETED = ("coop", "official", "evopress", "random")
# Windows of a text that is only measured on.
TEXT_WINDOWS = 40
# Sign flips of a paired test, and the share of them below which a difference is called real.
_FLIPS = 9_999
_REAL = 0.05


@dataclass(frozen=True, eq=False)
class Measured:
    """A pruned model on one text.

    Attributes:
        text: SPEC of the text.
        window_nll: mean NLL of each window, float64 [W]; of several texts weighted, so that their mean is the texts'.
        p_best: of a difference from the best at this size this large or larger, were both equally good (two-sided,
            random signs of the windows' differences); 1 for the best itself, None where a window is not finite.
            Repaired models are compared with the best repaired one, others with the best that is not.
        p_unrepaired: of a repaired model, the same of its difference from itself before the repair; None of others.
    """

    text: str
    window_nll: Floats
    p_best: float | None = None
    p_unrepaired: float | None = None

    @property
    def ppl(self) -> float | None:
        """exp of the mean NLL."""
        return perplexity(float(self.window_nll.mean()))

    @property
    def ppl_stderr(self) -> float | None:
        """Standard error of the perplexity over windows, to first order."""
        ppl = self.ppl
        if ppl is None or len(self.window_nll) < 2:
            return None
        return finite_or_none(ppl * float(self.window_nll.std(ddof=1)) / math.sqrt(len(self.window_nll)))


@dataclass(frozen=True, eq=False)
class Row:
    """What one method did at one size.

    Attributes:
        removed: labels of the units that go; None for a method that removes width.
        params: parameters that go.
        passes: cost in passes of the full model over the calibration text, heads left out.
        seconds: of the search, and for a repaired row of the repair on top.
        texts: the calibration text first, then the others.
        repair: `record` of the repair (`repair/fit.py`), of a repaired model; None of others.
    """

    method: str
    n_remove: int
    removed: list[Any] | None
    params: int
    masks: int
    passes: float
    seconds: float
    texts: list[Measured] = field(default_factory=list)
    repair: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        """The method, and whether a repair followed."""
        return self.method if self.repair is None else f"{self.method} + repair"


@dataclass(frozen=True, eq=False)
class Comparison:
    """All rows, the full model, and what they were measured on."""

    full: Row
    rows: list[Row]
    about: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**self.about, "full": _json(self.full), "rows": [_json(row) for row in self.rows]}

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        return comparison_fragment(self.record)


def compare(
    model: str,
    *,
    calibration: Texts = "builtin",
    texts: Sequence[str] = (),
    remove: Sequence[int] = (3,),
    methods: Sequence[str] = DEFAULT_METHODS,
    budget: int | None = None,
    text_windows: int = TEXT_WINDOWS,
    repair: bool = False,
    repair_text: Sequence[str] | None = None,
    repair_tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    on_progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Run every method at every size and measure what is left on every text.

    Args:
        model: checkpoint folder, or hub name.
        calibration: SPEC of the text that is searched on, or several, with weights if wanted (`game/mixture.py`).
        texts: SPECs of texts that no search sees, `text_windows` windows of each.
        remove: how many players to remove, one or more sizes.
        methods: names of `search.base.METHODS`, and "flap": heads and channels go, with as many parameters as the same
            number of mean layers.
        budget: masks that each method may measure; its own default where None. Methods that ask a set number of masks
            (`sleb`, `ppl`, `shortgpt` and such) are not held to it.
        repair: measure every choice once more with a repair fitted to it (width has none), as `prune` would keep it:
            one that does not help its own held-out windows is left out, and the row is as the one without.
        repair_text: SPECs of the texts to fit repairs to; by default those of `prune`, without the `texts`.
        repair_tokens: how many tokens to fit each to.
        options: further arguments of `ModelGame.from_pretrained`.

    A method that refuses a size (an exhaustive search of too many masks, a run of groups that do not follow each other)
    has no row there, and `about["refused"]` says why.

    Raises `RequestError` before anything is searched for an unknown method, a utility of items with options, a size
    out of range or one with no exportable mask; and where every method refuses every size.
    """
    _check(remove, methods, options.get("utility", "ppl_ratio"))
    tell: Progress = on_progress or (lambda stage, done, total: None)
    opened = ModelGame.from_pretrained(model, calibration, seed=seed, on_progress=on_progress, **options)
    with closing(opened) as game:
        allowed = ExportablePlayers(game.checkpoint.model.config, game.players)
        for size in remove:
            check_n_remove(game.n_players, size)
            allowed.check_size(game.n_players - size)
        fitted = None
        if repair:
            check_repairable(game)
            fitted = texts_to_fit(
                game, repair_text, repair_tokens, required=True, heldout=texts, seed=seed, progress=on_progress
            )
        tokens = int(game.calibration.ids.shape[1])
        games = [game, *(same_model_on(game, text, text_windows, tokens, seed) for text in texts)]
        everything = np.ones(game.n_players, dtype=np.bool_)
        full = Row("full", 0, [], 0, 0, 0.0, 0.0, _on_texts(games, everything))
        rows: list[Row] = []
        refused: list[dict[str, Any]] = []
        sizes = sorted(set(remove))
        for done, size in enumerate(sizes):

            def report(methods_done: int, before: int = done * len(methods)) -> None:
                tell("methods and sizes", before + methods_done, len(sizes) * len(methods))

            rows += _of_size(size, methods, games, fitted, seed, budget, allowed, report, refused)
        tell("methods and sizes", len(sizes) * len(methods), len(sizes) * len(methods))
        if not rows:
            raise RequestError(refused[0]["reason"])
        return Comparison(full, rows, {**_about(games, fitted, seed), "refused": refused})


def _check(remove: Sequence[int], methods: Sequence[str], utility: Any) -> None:
    """Raise `RequestError` for what can be seen before anything is opened."""
    if not remove or not methods:
        raise RequestError("a comparison needs at least one size to remove and one method")
    for name in methods:
        if name not in WIDTH_METHODS:
            get_method(name)
    found = get_utility(utility)
    if isinstance(found, ChoiceUtility):
        raise RequestError(
            f"a comparison judges methods by the perplexity of texts, and the utility {found.name} is one of items "
            f"with options: choose from {', '.join(UTILITIES)}"
        )


def _of_size(
    size: int,
    methods: Sequence[str],
    games: Sequence[ModelGame],
    fitted: Domains | None,
    seed: int,
    budget: int | None,
    allowed: ExportablePlayers,
    report: Callable[[int], None],
    refused: list[dict[str, Any]],
) -> list[Row]:
    """All methods at one size, each with its repaired row behind it where repairs are fitted; adds to `refused`."""
    rows: list[Row] = []
    repaired: list[Row] = []
    for done, method in enumerate(methods):
        report(done)
        try:
            row, mask = _run(method, games, size, seed, budget, allowed)
        except RequestError as error:  # what others found is not thrown away for it
            refused.append({"method": method, "remove": size, "reason": str(error)})
            continue
        rows.append(row)
        if fitted is not None and mask is not None:
            repaired.append(_repaired(row, games, mask, fitted))
    return _beside(_judged(rows), _judged(repaired))


def _about(games: Sequence[ModelGame], fitted: Domains | None, seed: int) -> dict[str, Any]:
    """What was compared on, as JSON can hold it."""
    game = games[0]
    repair = None
    if fitted is not None:
        repair = {
            "texts": [domain.spec for domain in fitted.domains],
            "left_out": list(fitted.left_out.values()),
            "tokens": fitted.tokens,
        }
    return {
        "model": game.checkpoint.name,
        "players": game.players.kind,
        "n_players": game.n_players,
        "texts": [one.calibration.spec for one in games],
        "windows": [one.windows.n_windows for one in games],
        "tokens": int(game.calibration.ids.shape[1]),
        "seed": seed,
        "fingerprints": game.fingerprints,
        "repair": repair,
    }


def _run(
    method: str, games: Sequence[ModelGame], size: int, seed: int, budget: int | None, allowed: ExportablePlayers
) -> tuple[Row, Masks | None]:
    """One method at one size, on a game that knows nothing yet, and the mask that it chose; of width there is none."""
    game = games[0].run()
    began = time.perf_counter()
    blocks = list(game.skeleton.blocks)
    if method in WIDTH_METHODS:
        share = round(size / game.n_players * sum(one.numel() for block in blocks for one in block.parameters()))
        rival = flap(game, share)
        seconds = time.perf_counter() - began
        measured = [_measured(one, rival.window_nll(one.windows.ids)) for one in games]
        return Row(method, size, None, rival.removed_params, 0, _passes(game), seconds, measured), None
    limit = budget if method in _BUDGETED else None
    choice = get_method(method)(game, size, seed=seed, budget=limit, allowed=allowed)
    seconds = time.perf_counter() - began
    units = np.flatnonzero(~game.players.unit_masks(choice.mask[None])[0])
    removed = [game.players.label(int(unit)) for unit in units]
    params = sum(game.players.n_parameters(int(unit)) for unit in units)
    texts = _on_texts(games, choice.mask)
    return Row(method, size, removed, params, choice.n_masks, _passes(game), seconds, texts), choice.mask


def _repaired(row: Row, games: Sequence[ModelGame], mask: Masks, fitted: Domains) -> Row:
    """The row of the same mask after its repair."""
    began = time.perf_counter()
    repaired = fit_repair(games[0], mask, fitted)
    seconds = row.seconds + time.perf_counter() - began
    measured = []
    for game, before in zip(games, row.texts, strict=True):
        after = _measured(game, repaired_windows(game, repaired)[2]) if repaired.kept else before
        p = paired_p(after.window_nll - before.window_nll)
        measured.append(replace(after, p_unrepaired=p))
    return replace(row, seconds=seconds, texts=measured, repair=repaired.record)


def _beside(rows: list[Row], repaired: list[Row]) -> list[Row]:
    """Each row, and behind it that of its method after the repair."""
    found = {row.method: row for row in repaired}
    return [one for row in rows for one in (row, found.get(row.method)) if one is not None]


def _passes(game: ModelGame) -> float:
    return game.evaluations.token_evals / (game.skeleton.n_layers * game.windows.ids.numel())


def _on_texts(games: Sequence[ModelGame], mask: Masks) -> list[Measured]:
    return [_measured(game, game.evaluate(mask[None]).window_nll[0]) for game in games]


def _measured(game: ModelGame, window_nll: Floats) -> Measured:
    return Measured(game.calibration.spec, window_nll if game.domains is None else game.domains.weighted(window_nll))


def _judged(rows: list[Row]) -> list[Row]:
    """The rows of one size, each text's results tested against the best of them."""
    for text in range(len(rows[0].texts) if rows else 0):
        column = [row.texts[text] for row in rows]
        means = np.array([one.window_nll.mean() for one in column])
        best = column[int(np.argmin(np.where(np.isfinite(means), means, np.inf)))]
        for row, one in zip(rows, column, strict=True):
            p = 1.0 if one is best else paired_p(one.window_nll - best.window_nll)
            row.texts[text] = replace(one, p_best=p)
    return rows


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


def _json(row: Row) -> dict[str, Any]:
    return {
        "method": row.method,
        "repaired": row.repair is not None,
        "remove": row.n_remove,
        "removed": row.removed,
        "params_removed": row.params,
        "masks": row.masks,
        "passes": round(row.passes, 2),
        "seconds": round(row.seconds, 3),
        "texts": [
            {
                "text": one.text,
                "ppl": one.ppl,
                "ppl_stderr": one.ppl_stderr,
                "nll": finite_or_none(float(one.window_nll.mean())),
                "p_best": one.p_best,
                "as_good_as_best": None if one.p_best is None else one.p_best >= _REAL,
                "p_unrepaired": one.p_unrepaired,
            }
            for one in row.texts
        ],
        "repair": row.repair,
    }
