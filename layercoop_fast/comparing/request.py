"""What `compare` is asked for. Nothing here loads torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layercoop_fast.errors import RequestError
from layercoop_fast.game.options import CalibrationOptions, GameOptions
from layercoop_fast.inputs.options import REMOVE, REPAIR, SEARCH, TEXT, option
from layercoop_fast.repair.options import RepairOptions

if TYPE_CHECKING:
    from layercoop_fast.game.item_utility import ChoiceUtility
    from layercoop_fast.game.utility import Utility

# The methods compared where none are named: those that need no budget of their own to be fair.
DEFAULT_METHODS = ("coop", "sleb", "shortgpt", "angular", "ppl")

COMPENSATIONS: dict[str, str] = {
    "replaceme": "a matrix on the output of the last linear map before each removed run, in its weight",
    "linear_patch": "scales of the stream in a Hadamard basis; no plain checkpoint has them",
    "ghosted": "a matrix on the stream by least squares; no plain checkpoint has it",
    "prune_comp": "one factor of the stream, which can be folded into weights",
}
"""Compensations of other methods for removed runs, and one line about each (`comparing/compensations.py`)."""


@dataclass(frozen=True, kw_only=True)
class CompareRequest(RepairOptions, GameOptions, CalibrationOptions):
    """Everything `compare` can be asked for; the fields are its keywords.

    Attributes:
        texts: SPECs of texts that no search sees, `text_windows` windows of each.
        remove: how many players to remove, one or more sizes.
        methods: names of `search.methods.METHODS`, and "flap": heads and channels go, with as many parameters as the
            same number of average layers.
        budget: masks that each method may measure; its own default where None. It does not apply to methods that
            measure a fixed number of masks (`sleb`, `ppl`, `shortgpt` and others).
        repair: measure every choice once more with a repair fitted to it (width has none), as `prune` would keep it:
            one that does not help on its own held-out windows is left out, and the row equals the one without repair.
        compensations: names of `COMPENSATIONS`: measure every choice once more with each, fitted to the same text.
        items: this many items of four options are cut from each of the `texts`; the share of items whose true option
            is the likeliest (by its length) is measured of every row.
        continuations: this many prompts are the beginnings of windows of each text; the share of up to 64 greedy tokens
            before the first that differs from the full model's is measured of every row.
        repair_text: SPECs of the texts to fit repairs to; by default those of `prune`, without the `texts`.
        store: file to keep measured masks in and to take known ones from (`game/store.py`), on all texts. Finished
            rows are kept next to it, in a file of its name and ".rows": a comparison that was killed goes on from
            there. A row is taken only for an equal request: same weights, texts, method, size, and whatever else could
            change a number.
    """

    remove: Sequence[int] = option(
        (3,), REMOVE, "Sizes: how many players to remove, for example 3,6,10.", read="sizes", required=True
    )
    texts: Sequence[str] = option(
        (),
        TEXT,
        "A text (SPEC) to measure on that no search sees; give the option once for each text.",
        name="eval",
        read="texts",
    )
    text_windows: int = option(40, TEXT, "Windows of each text of eval=.", name="eval_windows", least=1)
    utility: str | Utility | ChoiceUtility = option(
        GameOptions.utility, SEARCH, "Worth of a mask: ppl_ratio, nll, kl or blend:SHARE.", read="text"
    )
    methods: Sequence[str] = option(
        DEFAULT_METHODS,
        SEARCH,
        "Search methods, as prune has them, and flap: heads and channels go, at equal parameters.",
        read="names",
    )
    budget: int | None = option(None, SEARCH, "Number of masks that methods with a budget may measure.")
    store: str | Path | None = option(
        GameOptions.store,
        SEARCH,
        "Keep measured masks in this file, and finished rows in FILE.rows: the same command goes on from there.",
        read="path",
    )
    repair: bool = option(False, REPAIR, "Measure every choice also with a repair fitted to it, as prune does.")
    compensations: Sequence[str] = option(
        (),
        REPAIR,
        f"Measure every choice also with compensations of other methods: {', '.join(COMPENSATIONS)}.",
        name="compensate",
        read="names",
    )
    items: int = option(0, TEXT, "Also the accuracy on N items of four options, cut from each text of eval=.", least=0)
    continuations: int = option(
        0,
        TEXT,
        "Also how long greedy continuations of N prompts of each text agree with the full model's.",
        least=0,
    )

    @property
    def fits(self) -> bool:
        """Whether anything is fitted to text."""
        return self.repair or bool(self.compensations)


def check_compensations(names: Sequence[str]) -> None:
    """Raise `RequestError` for an unknown compensation, with the most similar name and the whole list."""
    for name in names:
        if name not in COMPENSATIONS:
            near = difflib.get_close_matches(name.lower(), COMPENSATIONS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RequestError(f"unknown compensation {name!r}: {hint}there are {', '.join(COMPENSATIONS)}")
