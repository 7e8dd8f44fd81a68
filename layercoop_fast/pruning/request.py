"""What `prune` is asked for. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layercoop_fast.errors import RequestError
from layercoop_fast.game.options import CalibrationOptions, GameOptions
from layercoop_fast.inputs.options import MOST_WINDOWS, OUTPUT, REMOVE, REPAIR, SEARCH, TEXT, option
from layercoop_fast.repair.options import RepairOptions
from layercoop_fast.search.methods import DEFAULT_METHOD, METHODS

if TYPE_CHECKING:
    from layercoop_fast.masked.players import Label

PHASES = ("prefill", "decode")
"""What a model does when its blocks are timed."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much has to go; exactly one of the first four is given.

    Attributes:
        remove: players.
        drop: share of the players' parameters, 0 to 1: of equal players the nearest number, of unequal ones at least.
        speedup: time of the full model over that of the pruned one, at least.
        fit: bytes that the pruned model's weights may take.
        costs: of `speedup`: "prefill" or "decode", measured, or a .json file (`pruning/player_costs.py`).
    """

    remove: int | None = option(None, REMOVE, "Number of players to remove.")
    drop: float | None = option(None, REMOVE, "Or the share of their parameters to remove, 0 to 1.")
    speedup: float | None = option(None, REMOVE, "Or how many times as fast the model must become, for example 1.5.")
    fit: int | None = option(None, REMOVE, "Or how large its weights may be, for example 2GiB.", read="size")
    costs: str = option(
        "prefill", REMOVE, "The speed that speedup= means: prefill or decode, measured here, or a FILE.json of times."
    )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return self.remove is None and self.drop is None and self.speedup is None and self.fit is None

    def check(self) -> None:
        """Raise `RequestError` where this asks for nothing, for two things, or for what cannot be."""
        given = [name for name in ("remove", "drop", "speedup", "fit") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RequestError(
                "say how much to remove, in one way: a number of players (remove=3), a share of parameters "
                "(drop=0.1), a speed (speedup=1.5) or a size (fit=2GiB)"
            )
        if self.drop is not None and not 0.0 < self.drop < 1.0:
            raise RequestError(f"drop={self.drop} is not a share between 0 and 1")
        if self.speedup is not None and not 1.0 < self.speedup < float("inf"):
            raise RequestError(f"speedup={self.speedup} is not a gain: give a factor above 1, like 1.5")
        if self.fit is not None and self.fit < 1:
            raise RequestError(f"fit={self.fit} leaves no byte for weights")
        if self.costs not in PHASES and not self.costs.endswith(".json"):
            raise RequestError(f"costs={self.costs!r} is neither {' nor '.join(PHASES)} nor a .json file")
        if self.costs != "prefill" and self.speedup is None:
            raise RequestError("costs= belongs to speedup=: leave it out")


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a user rules out, in layers and labels of the original model.

    Attributes:
        keep: labels that stay.
        keep_first: number of first layers that stay too.
        keep_last: number of last layers that stay too.
        must_go: labels that are removed whatever they are worth.
        stages: contiguous pipeline stages that keep the same number of layers.
    """

    keep: Sequence[Label] = option(
        (), REMOVE, "Layers (or halves of layers) that stay, for example 0,1,12 or 3.attn.", read="labels"
    )
    keep_first: int = option(0, REMOVE, "The first N layers stay.", least=0)
    keep_last: int = option(0, REMOVE, "The last N layers stay.", least=0)
    must_go: Sequence[Label] = option(
        (), REMOVE, "Layers (or halves of layers) that are removed in any case.", read="labels"
    )
    stages: int = option(1, REMOVE, "Keep the same number of layers in each of N contiguous pipeline stages.", least=1)

    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "keep": list(self.keep),
            "keep_first": self.keep_first,
            "keep_last": self.keep_last,
            "must_go": list(self.must_go),
            "stages": self.stages,
        }


# Of the bases, fields come from the last to the first: in this order the help shows the options of a panel.
@dataclass(frozen=True, kw_only=True)
class PruneRequest(RepairOptions, GameOptions, Constraints, Goal, CalibrationOptions):
    """Everything `prune` can be asked for; the fields are its keywords.

    Attributes:
        heldout: SPEC of a text that both models are measured on and that no search sees.
        method: one of `search.methods.METHODS`.
        budget: number of masks that the method may measure; its own default where None.
        settle: after the search, go on with a few of the best masks on more and more windows, until the second is
            better than the first with this probability at most (`search/settle.py`). Not with `nested`.
        most_windows: number of windows of each text at which that ends.
        nested: find masks of all sizes up to the one wanted, each within the next (`search/nested.py`), and write them
            into the record.
        repair: refit the weights before each removed run to stand in for it (`repair/fit.py`). None: where that helps,
            and where the texts allow it (never with `offload`); True: `RequestError` where they do not; False: never.
        search_repaired: measure masks as they are repaired, on held-out windows of every text that repairs are fitted
            to (`pruning/under_repairs.py`). Not with `nested`, `settle`, `workers`, or `offload`, nor on items.
        finalists: number of the best measured masks that a repair is fitted to; the one that is worth most repaired
            is taken.
        measure_cost: load both models in processes of their own at the end, and measure memory and speed; never with
            `offload`.
        samples: number of prompts, cut from the held-out text (the built-in one where there is none), that both models
            continue for the report, together with the beginnings of the windows; 0 keeps all text out of the folder.
            Not with `offload`, nor without a tokenizer.
        report: write `report.html` too (`report/html/`).
        verify: open the folder again before it takes its place and compare it with the masked model
            (`export/proof.py`). The original's weights are released before that.
        force: replace a folder that is there.
    """

    heldout: str | None = option(None, TEXT, "A second text to measure both models on; no search sees it.")
    method: str = option(DEFAULT_METHOD, SEARCH, f"The search method: {', '.join(METHODS)}.")
    budget: int | None = option(None, SEARCH, "Number of masks the method may measure.")
    settle: float | None = option(
        None,
        SEARCH,
        "After the search, add windows until the second-best mask is better with at most this probability, for "
        "example 0.05.",
    )
    most_windows: int = option(MOST_WINDOWS, SEARCH, "Number of windows of each text at which settle= stops.")
    nested: bool = option(
        False,
        SEARCH,
        "Find masks of all sizes up to this one, each inside the next; generate runs them with mask=OUT@3.",
    )
    repair: bool | None = option(
        None,
        REPAIR,
        "Refit the weights before each removed run of layers to stand in for it. Default: where that helps.",
    )
    search_repaired: bool = option(
        False,
        REPAIR,
        "Search for the mask that is best after its repair: masks are measured with maps that stand in for what they "
        "remove, on held-out windows of all texts of the repair.",
    )
    finalists: int = option(1, REPAIR, "Repair the N best measured masks, and take the best of the repaired ones.")
    measure_cost: bool = option(
        True, OUTPUT, "Measure memory and speed of both models at the end; never with offload=.", name="cost"
    )
    samples: int = option(
        2, OUTPUT, "Number of prompts that both models continue in the report; 0: the report holds no text.", least=0
    )
    report: bool = option(True, OUTPUT, "Write DIR/report.html.")
    verify: bool = option(
        True, OUTPUT, "Open the written folder again and compare it with the masked model before it counts as written."
    )
    force: bool = option(False, OUTPUT, "Replace what is there.")
