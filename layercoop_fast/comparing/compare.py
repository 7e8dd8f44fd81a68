"""Compares methods: what each removes at each size, what is left on each text, and what the search cost.

    compared = compare("model", calibration="novels.txt", texts=["code.txt"], remove=[3, 6], methods=["coop", "sleb"])
    compared.record            # JSON: one row for each method and size, and a second one with `repair`

    compare(..., compensations=["ghosted"], items=100, continuations=8)       # rivals of repairs, and other judges

Every method begins with nothing known, so its cost is that of a run of its own; costs are counted in passes of the full
model over the calibration text (`Evaluations.token_evals`). A mask that one method has measured is all the same not
measured again for another (`game/runs.py`), nor for a later comparison with the same store, which also keeps the
finished rows. Differences between methods are tested window by window: on the same windows their NLLs vary together, so
perplexities alone do not show which differences are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from layercoop_fast.comparing.compensations import check_fits
from layercoop_fast.comparing.finding import WIDTH_METHODS, HowFound, RowFinder, passes
from layercoop_fast.comparing.forecast import Ahead, Behind, ahead_of
from layercoop_fast.comparing.judges import ContinuationJudge, ItemJudge, Judge, check_judged
from layercoop_fast.comparing.paired import mark_best
from layercoop_fast.comparing.request import CompareRequest, check_compensations
from layercoop_fast.comparing.rows import KeptRows, Row, rows_file
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.players import ExportablePlayers
from layercoop_fast.game.item_utility import ChoiceUtility
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.options import GameOptions
from layercoop_fast.game.other_text import check_unseen, on_other_text
from layercoop_fast.game.utility import UTILITIES, get_utility
from layercoop_fast.inputs.options import takes, values_of
from layercoop_fast.masks.types import Progress
from layercoop_fast.repair.fit import check_repairable
from layercoop_fast.repair.options import check_compute
from layercoop_fast.repair.texts import RepairTexts, check_texts, texts_to_fit
from layercoop_fast.report.html.compared import comparison_fragment
from layercoop_fast.search.base import check_n_remove, get_method
from layercoop_fast.texts.calibration import check_readable
from layercoop_fast.texts.mixture import texts_of
from layercoop_fast.texts.protocols import check_chosen_on

# A budget beyond this would not fit into memory before it was ever measured.
_MOST_MASKS = 10_000_000


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows of a comparison.

    Attributes:
        full: the full model.
        rows: one for each method and size, and one more for its repair and each other compensation.
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

    Examples:
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
        if request.fits:
            check_repairable(game)
            check_fits(request.compensations, game)
        tokens = int(game.calibration.ids.shape[1])
        games = [game, *(on_other_text(game, text, request.text_windows, tokens, seed, stored=True) for text in texts)]
        judges = _judges(games, request)
        fitted = None
        if request.fits:  # last, since the model may write one of the texts itself
            fitted = texts_to_fit(
                game,
                request.repair_text,
                request.repair_tokens,
                required=True,
                heldout=texts,
                seed=seed,
                progress=steps,
            )
        how = HowFound(
            fitted=fitted,
            repair=request.repair,
            compute=request.repair_compute,
            compensations=tuple(dict.fromkeys(request.compensations)),
            seed=seed,
            budget=request.budget,
        )
        table = RowFinder(games, judges, how, allowed, kept, steps)
        full = table.full()
        if on_ahead is not None:
            missing = [(size, method) for size, method in wanted if not table.has(method, size)]
            behind = _behind(how, judges)
            on_ahead(ahead_of(games, missing, len(wanted), request.budget, seed, behind))
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
            for compensated in (False, True):
                mark_best([row for row in rows if row.n_remove == size and row.compensated == compensated])
        spent = round(passes(game), 2)
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
    check_judged(request.items, request.continuations, request.texts)
    if request.fits:
        check_compensations(request.compensations)
        check_texts(request.repair_text, request.repair_tokens)
        check_compute(request.repair_compute)
        _check_readable(request.repair_text or ())
    return searched


def _judges(games: Sequence[ModelGame], request: CompareRequest) -> list[Judge]:
    """What rows are measured by besides texts."""
    judges: list[Judge] = []
    if request.items:
        judges.append(ItemJudge(games[0], request.texts, request.items, request.seed))
    if request.continuations:
        judges.append(ContinuationJudge(games[0], games, request.continuations))
    return judges


def _behind(how: HowFound, judges: Sequence[Judge]) -> Behind:
    """What follows every choice."""
    others = len(how.compensations)
    fitted = 0
    if how.fitted is not None:
        every = sum(text.every.numel() for text in how.fitted.texts)
        # A repair needs the full and the pruned stream, other compensations the full one alone.
        fitted = 2 * how.fitted.tokens * how.repair + every * others
    return Behind(fitted, 1 + how.repair + others, sum(judge.tokens for judge in judges))


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
