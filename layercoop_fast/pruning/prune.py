"""The whole road: a checkpoint in, a smaller checkpoint out, with a record of what was done and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.game.item_utility import ChoiceUtility
from layercoop_fast.game.utility import Utility
from layercoop_fast.inputs.options import MOST_WINDOWS, TOKENS, WINDOWS
from layercoop_fast.masked.players import Label
from layercoop_fast.masks.types import Progress
from layercoop_fast.pruning.family import check_nested
from layercoop_fast.pruning.goal import Budget, Limits
from layercoop_fast.pruning.rerun import rerun_command
from layercoop_fast.pruning.stages import Mending, Opening, Search, Settling, Watch, check_places, judged
from layercoop_fast.pruning.writing import Export
from layercoop_fast.repair.texts import DEFAULT_TOKENS
from layercoop_fast.report.html.page import report_fragment
from layercoop_fast.search.base import DEFAULT_METHOD, Choice
from layercoop_fast.texts.mixture import Texts

# Prompts that both models go on from in a report.
SAMPLES = 2


@dataclass(frozen=True, eq=False)
class Pruned:
    """What `prune` did.

    Attributes:
        out: the folder that was written.
        choice: what the search decided.
        record: the content of `layercoop.json`.
    """

    out: Path
    choice: Choice
    record: dict[str, Any]

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        return report_fragment(self.record)


def prune(
    model: str,
    out: str | Path,
    *,
    calibration: Texts = "builtin",
    remove: int | None = None,
    drop: float | None = None,
    speedup: float | None = None,
    fit: int | None = None,
    costs: str = "prefill",
    keep: Sequence[Label] = (),
    keep_first: int = 0,
    keep_last: int = 0,
    must_go: Sequence[Label] = (),
    stages: int = 1,
    method: str = DEFAULT_METHOD,
    budget: int | None = None,
    heldout: str | None = None,
    utility: str | Utility | ChoiceUtility = "ppl_ratio",
    players: str | Sequence[Sequence[Label]] = "layers",
    windows: int = WINDOWS,
    tokens: int = TOKENS,
    shots: int = 0,
    share_context: bool = True,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "cpu",
    memory: int | None = None,
    blocks: str | None = None,
    block_path: str = "auto",
    score_every: int = 1,
    store: str | Path | None = None,
    workers: int | str | None = None,
    tolerant: bool = False,
    offload: bool = False,
    repair: bool | None = None,
    repair_text: Sequence[str] | None = None,
    repair_tokens: int = DEFAULT_TOKENS,
    finalists: int = 1,
    nested: bool = False,
    chat: bool = False,
    settle: float | None = None,
    most_windows: int = MOST_WINDOWS,
    measure_cost: bool = True,
    samples: int = SAMPLES,
    report: bool = True,
    verify: bool = True,
    force: bool = False,
    trust_remote_code: bool = False,
    on_progress: Progress | None = None,
) -> Pruned:
    """Remove layers from a checkpoint and write what is left as a plain checkpoint.

    The folder `out` holds a model that `AutoModelForCausalLM.from_pretrained(out)` loads, its tokenizer, and
    `layercoop.json` (docs/design.md, section 5). It appears whole, by one rename, or not at all.

    Args:
        model: checkpoint folder, or hub name.
        out: folder to write; it must not exist unless `force`.
        calibration: SPEC of the text that worths are measured on (`texts/calibration.py`), or several with weights
            (`texts/mixture.py`), `windows` windows of each.
        remove: how many players to remove; or else
        drop: which share of their parameters, 0 to 1: of equal players the nearest number, of unequal ones at least; or
        speedup: by what factor the model is to run faster, at least, by `costs` ("prefill", "decode", or a .json file);
            or
        fit: bytes that its weights may take (`spending.Budget`).
        keep: labels of layers or halves that stay; `keep_first` and `keep_last` layers do too, and
        must_go: labels that are removed whatever they are worth.
        stages: contiguous stages that keep the same number of layers (`spending.Limits`).
        utility: what a mask is worth, on text or on items with options (`ModelGame`).
        shots: examples before each item, and
        share_context: whether contexts of items are computed once (`texts/items.py`).
        players: "layers", "sublayers", groups of labels, or a .json file of them. A layer of which one half goes is
            kept with that half's output projection written as zeros.
        method: one of `search.base.METHODS`.
        budget: masks the method may measure; its own default where None.
        heldout: SPEC of a text to measure both models on that no search sees.
        memory: bytes for stored states.
        block_path: "auto", or "hf" for the model's own blocks only (`ModelGame`).
        score_every: score every so many-th position of a window (see `ModelGame`).
        store: file to keep measured masks in and to take known ones from (`game/store.py`); not for the held-out text.
        workers: what measures masks: a number of local processes, "ray" or "ray:HOST:PORT"; not for the held-out text.
            They are ended whatever happens.
        tolerant: take workers on unlike machines.
        offload: read blocks from the checkpoint's files when they are used (`engine/offload.py`).
        repair: refit the weights before each removed run to stand in for it (`repair/fit.py`). None: where that helps,
            and where the texts allow it (never with `offload`); True: `RequestError` where they do not; False: never.
        repair_text: SPECs of the texts to fit a repair to, by default those of `repair.texts.default_texts`.
        repair_tokens: how many tokens to fit it to.
        finalists: of how many of the best masks that were measured a repair is fitted, to take the one that is worth
            most repaired (`search/finalists.py`).
        nested: choose masks of all sizes up to the wanted one, each within the next, for their quality together
            (`search/nested.py`); the checkpoint is that of the last, and the record's `nested` lists them all, to be
            run on the original model (`--mask OUT@3`).
        chat: put texts through the model's chat template (`texts/chat.py`), the held-out one too.
        settle: add windows until the probability that the next-best mask is better is at most this
            (`search/settle.py`), or a text has
        most_windows: windows.
        measure_cost: measure memory and speed of the full and the pruned model, each loaded once more; not with
            `offload`, since they need not fit.
        samples: prompts, cut from the held-out text (the built-in one where there is none), that both models go on
            from for the report, and the beginnings of the windows there; 0 keeps all text out of `out`. Not with
            `offload`, nor without a tokenizer.
        report: write `report.html` too (`report/html/`).
        verify: open the folder again before it takes its place and compare it with the masked pass
            (`export/proof.py`). The original's weights are let go before that.
        on_progress: called with (stage, done, total).

    Raises `RequestError` for a wrong request, before anything is computed where that can be seen, and `RunError` for a
    failure on the way, a folder that is not the masked model among them; nothing is left half-written.
    """
    command = rerun_command(prune, locals())
    out = Path(out)
    check_places(out, model, store, force=force)
    how_opened = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    opening = Opening(
        model,
        calibration,
        Budget(remove, drop, speedup, fit, costs),
        Limits(keep, keep_first, keep_last, must_go, stages),
        heldout,
        samples,
        options={
            **how_opened,
            "utility": utility,
            "players": players,
            "windows": windows,
            "tokens": tokens,
            "shots": shots,
            "share_context": share_context,
            "seed": seed,
            "memory": memory,
            "blocks": blocks,
            "block_path": block_path,
            "score_every": score_every,
            "store": store,
            "workers": workers,
            "tolerant": tolerant,
            "offload": offload,
            "chat": chat,
        },
    )
    search = Search(method, budget, nested, seed)
    mending = Mending(repair, repair_text, repair_tokens, finalists, offload=offload)
    settling = None if settle is None else Settling(settle, most_windows)
    for part in (search, opening, mending):
        part.check()
    if settling is None and most_windows != MOST_WINDOWS:
        raise RequestError("--most-windows belongs to --settle: leave it out")
    if nested:
        check_nested(method, settles=settle is not None, finalists=finalists)
    watch = Watch(on_progress)
    with opening(watch, search, mending, settling) as opened:
        choice, game = search(opened, watch), opened.game
        if settling is not None:
            game, choice = settling(opened, choice, opening, watch)
        choice, repaired = mending(game, opened, choice, opening, watch)
        quality = judged(game, opened, choice, repaired, watch)
        opened.game.close()  # workers make room for the models that are measured
        asked: dict[str, Any] = {"report": report, "verify": verify}
        export = Export(opened, game, choice, repaired, quality, watch, command, seed, how_opened, **asked)
        record = export(model, out, measure_cost=measure_cost and not offload, force=force)
    return Pruned(out, choice, record)
