"""What `compare` is asked for. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from layercoop_fast.game.options import CalibrationOptions, GameOptions
from layercoop_fast.inputs.options import REMOVE, REPAIR, SEARCH, TEXT, shell
from layercoop_fast.repair.options import RepairTexts

if TYPE_CHECKING:
    from layercoop_fast.game.item_utility import ChoiceUtility
    from layercoop_fast.game.utility import Utility

# The methods compared where none are named: those that need no budget of their own to be fair.
DEFAULT_METHODS = ("coop", "sleb", "shortgpt", "angular", "ppl")


@dataclass(frozen=True, kw_only=True)
class CompareRequest(RepairTexts, GameOptions, CalibrationOptions):
    """Everything `compare` can be asked for; the fields are its keywords.

    Attributes:
        texts: SPECs of texts that no search sees, `text_windows` windows of each.
        remove: how many players to remove, one or more sizes.
        methods: names of `search.base.METHODS`, and "flap": heads and channels go, with as many parameters as the same
            number of average layers.
        budget: masks that each method may measure; its own default where None. It does not apply to methods that
            measure a fixed number of masks (`sleb`, `ppl`, `shortgpt` and others).
        repair: measure every choice once more with a repair fitted to it (width has none), as `prune` would keep it:
            one that does not help on its own held-out windows is left out, and the row equals the one without repair.
        repair_text: SPECs of the texts to fit repairs to; by default those of `prune`, without the `texts`.
        store: file to keep measured masks in and to take known ones from (`game/store.py`), on all texts. Finished
            rows are kept next to it, in a file of its name and ".rows": a comparison that was killed goes on from
            there. A row is taken only for an equal request: same weights, texts, method, size, and whatever else could
            change a number.
    """

    remove: Sequence[int] = field(
        default=(3,),
        metadata=shell(
            "Sizes: how many players to remove, for example 3,6,10.", panel=REMOVE, read="sizes", required=True
        ),
    )
    texts: Sequence[str] = field(
        default=(),
        metadata=shell(
            "A text (SPEC) to measure on that no search sees; give the option once for each text.",
            panel=TEXT,
            name="eval",
            read="texts",
        ),
    )
    text_windows: int = field(
        default=40, metadata=shell("Windows of each text of eval=.", panel=TEXT, name="eval_windows", least=1)
    )
    utility: str | Utility | ChoiceUtility = field(
        default=GameOptions.utility,
        metadata=shell("Worth of a mask: ppl_ratio, nll, kl or blend:SHARE.", panel=SEARCH, read="text"),
    )
    methods: Sequence[str] = field(
        default=DEFAULT_METHODS,
        metadata=shell(
            "Search methods, as prune has them, and flap: heads and channels go, at equal parameters.",
            panel=SEARCH,
            read="names",
        ),
    )
    budget: int | None = field(
        default=None, metadata=shell("Number of masks that methods with a budget may measure.", panel=SEARCH)
    )
    store: str | Path | None = field(
        default=GameOptions.store,
        metadata=shell(
            "Keep measured masks in this file, and finished rows in FILE.rows: the same command goes on from there.",
            panel=SEARCH,
            read="path",
        ),
    )
    repair: bool = field(
        default=False,
        metadata=shell("Measure every choice also with a repair fitted to it, as prune does.", panel=REPAIR),
    )
