"""The whole road: a checkpoint in, a smaller checkpoint out, with a record of what was done and what it costs."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import layercoop_fast
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.engine.quantised import is_quantised, parameters_of
from layercoop_fast.errors import RequestError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.players import zeroed_halves
from layercoop_fast.family import check_counted, check_nested, family_record
from layercoop_fast.files import check_target
from layercoop_fast.game.calibration import TOKENS, WINDOWS, Calibration, read_text
from layercoop_fast.game.choice_utility import ChoiceUtility
from layercoop_fast.game.choices import Choices, load_for
from layercoop_fast.game.mixture import Texts, load_texts
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.players import Label
from layercoop_fast.game.protocol import Floats, Masks, Progress
from layercoop_fast.game.utility import Utility
from layercoop_fast.repair.fit import Repaired, repaired_windows
from layercoop_fast.repair.texts import DEFAULT_TOKENS
from layercoop_fast.report.cost import Cost, measure_costs
from layercoop_fast.report.generations import Prompts
from layercoop_fast.report.html.page import report_fragment, report_page
from layercoop_fast.report.rerun import rerun_command
from layercoop_fast.search import nested as nested_search
from layercoop_fast.search.base import DEFAULT_METHOD, Choice, finite_or_none, get_method, perplexity
from layercoop_fast.search.by_cost import search_by_cost
from layercoop_fast.search.finalists import best_repaired, check_finalists
from layercoop_fast.search.settle import MOST_WINDOWS, check_settling
from layercoop_fast.search.settle import settle as settle_choice
from layercoop_fast.spending import Budget, Limits, resolve

SCHEMA = 1
# Prompts that both models go on from in a report, and the tokens of a window that stand for it there.
SAMPLES = 2
EXCERPT_TOKENS = 16


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
        calibration: SPEC of the text that worths are measured on (`game/calibration.py`), or several with weights
            (`game/mixture.py`), `windows` windows of each.
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
        share_context: whether contexts of items are computed once (`game/choices.py`).
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
        chat: put texts through the model's chat template (`game/chat.py`), the held-out one too.
        settle: add windows until the probability that the next-best mask is better is at most this
            (`search/settle.py`), or a text has
        most_windows: windows.
        measure_cost: measure memory and speed of the full and the pruned model, each loaded once more; not with
            `offload`, since they need not fit.
        samples: prompts, cut from the held-out text (the built-in one where there is none), that both models go on
            from for the report, and the beginnings of the windows there; 0 keeps all text out of `out`. Not with
            `offload`, nor without a tokenizer.
        report: write `report.html` too (`report/html/`).
        on_progress: called with (stage, done, total).

    Raises `RequestError` for a wrong request, before anything is computed where that can be seen, and `RunError` for a
    failure on the way; nothing is left half-written.
    """
    command = rerun_command(prune, locals())
    out = Path(out)
    check_target(out, folder=True, force=force)
    if store is not None and out.resolve() in (Path(store).resolve(), *Path(store).resolve().parents):
        raise RequestError(f"the store {store} is in {out}, which is replaced as a whole: keep the store elsewhere")
    get_method(method)  # an unknown one is said before anything is computed
    if budget is not None and budget < 1:
        raise RequestError(f"the budget must be at least 1 mask, not {budget}")
    asked = Budget(remove, drop, speedup, fit, costs)
    asked.check()
    limits = Limits(keep, keep_first, keep_last, must_go, stages)
    if repair and offload:
        raise RequestError("--repair needs all weights in memory: leave it out, or --offload")
    if repair is False and repair_text is not None:
        raise RequestError("a text to fit a repair to (--repair-text) contradicts --no-repair")
    check_finalists(finalists, repairs=repair is not False and not offload)
    if nested:
        check_nested(method, settles=settle is not None, finalists=finalists)
    if samples < 0:
        raise RequestError(f"the samples must be 0 or more, not {samples}")
    clock = _Clock()
    tell: Progress = on_progress or (lambda stage, done, total: None)
    tell("opening the model", 0, 1)
    with clock("load"):
        game = ModelGame.from_pretrained(
            model,
            calibration,
            utility=utility,
            players=players,
            windows=windows,
            tokens=tokens,
            shots=shots,
            share_context=share_context,
            seed=seed,
            dtype=dtype,
            device=device,
            memory=memory,
            blocks=blocks,
            block_path=block_path,
            score_every=score_every,
            trust_remote_code=trust_remote_code,
            store=store,
            workers=workers,
            tolerant=tolerant,
            offload=offload,
            chat=chat,
            on_progress=on_progress,
        )
        if is_quantised(game.checkpoint.model):
            _refuse_new_weights(game, repair)
        if settle is not None:
            check_settling(game, settle, most_windows)
        allowed = limits.on(game)
        spending = resolve(asked, game, allowed)
        if nested:
            check_counted(spending.target)
        tell("opening the model", 1, 1)
        heldout_game = None if heldout is None else same_model_on(game, heldout, windows, tokens, seed)
        prompts = None if offload or not samples else _prompts(game, heldout, samples)
    with clock("search"):
        if nested:
            choice = nested_search.search(
                game, spending.target.size, seed=seed, budget=budget, allowed=allowed, progress=on_progress
            )
        else:
            choice = search_by_cost(
                method, game, spending.target, seed=seed, budget=budget, allowed=allowed, progress=on_progress
            )
    searched = game
    if settle is not None:

        def cut(count: int) -> Calibration:
            # The other windows of 'self' are drawn with another seed; those of a text do not depend on it.
            return load_texts(
                calibration,
                game.checkpoint.tokenizer,
                game.skeleton,
                windows=count,
                tokens=tokens,
                seed=seed + count,
                chat=chat,
            )

        with clock("settle"):
            game, choice = settle_choice(
                game,
                choice,
                settle,
                most_windows=most_windows,
                cut=cut,
                allowed=allowed,
                seed=seed,
                progress=on_progress,
            )
    repaired = None
    if repair is not False and not offload and not is_quantised(game.checkpoint.model):
        with clock("repair"):
            choice, repaired = best_repaired(
                game,
                choice,
                finalists,
                lambda mask: spending.target.wants(mask) and allowed.check(mask) is None,
                repair_text,
                tokens=repair_tokens,
                required=repair is True,
                heldout=() if heldout is None else [heldout],
                seed=seed,
                progress=on_progress,
            )
    pair = np.stack([np.ones_like(choice.mask), choice.mask])
    with clock("evaluate"):
        quality = _quality(game, pair, repaired)
        unseen = None if heldout_game is None else _quality(heldout_game, pair, repaired)
        family = family_record(game, heldout_game, choice)
    searched.close()

    def costs_and_record(folder: Path) -> dict[str, str]:
        written = None if prompts is None else generations(folder, prompts)
        excerpts = [] if prompts is None else _beginnings(game, prompts)
        measured = measured_costs(folder) if measure_cost and not offload else None
        record.update(_record(game, choice, quality, unseen, measured, seed))
        record["budget"] = spending.record(choice.mask, game.players)
        record["constraints"] = limits.record()
        record["nested"] = family
        record["repair"] = None if repaired is None else repaired.record
        record.update(excerpts=excerpts, generations=written, command=command, seconds=clock.seconds)
        page = {"report.html": report_page(record)} if report else {}
        return {"layercoop.json": json.dumps(record, indent=1, allow_nan=False) + "\n", **page}

    def generations(folder: Path, prompts: Prompts) -> list[dict[str, str]] | None:
        tell("writing samples", 0, 1)
        try:
            with clock("samples"):
                full = prompts.continued(game.checkpoint.model)
                game.checkpoint.model.to("meta")
                small = open_checkpoint(str(folder), dtype=dtype, device=device, trust_remote_code=trust_remote_code)
                pruned = prompts.continued(small.model)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            # Some models cannot generate here, or not in this memory: no reason to lose what was searched for.
            return None
        tell("writing samples", 1, 1)
        columns = zip(prompts.texts(), full, pruned, strict=True)
        return [dict(zip(("prompt", "full", "pruned"), column, strict=True)) for column in columns]

    def measured_costs(folder: Path) -> dict[str, Cost]:
        tell("measuring memory and speed", 0, 1)
        # The measuring processes load the models anew; two copies of a large one would not fit.
        game.checkpoint.model.to("meta")
        for played in (searched, game, heldout_game):
            if played is not None:
                played.windows.free()
        torch.cuda.empty_cache()  # does nothing where no GPU was used
        with clock("measure"):
            full, pruned = measure_costs(
                [model, folder], dtype=dtype, device=device, trust_remote_code=trust_remote_code
            )
        tell("measuring memory and speed", 1, 1)
        return {"full": full, "pruned": pruned}

    record: dict[str, Any] = {}
    tell("writing the checkpoint", 0, 1)
    export_checkpoint(
        game.checkpoint.model,
        [int(layer) for layer in np.flatnonzero(game.players.layer_mask(choice.mask))],
        out,
        zeroed=zeroed_halves(game.players, choice.mask),
        replaced=None if repaired is None else repaired.tensors(),
        blocks_path=game.skeleton.blocks_path,
        tokenizer=game.checkpoint.tokenizer,
        force=force,
        finish=costs_and_record,
        streamed=game.skeleton.streamed,
    )
    tell("writing the checkpoint", 1, 1)
    return Pruned(out, choice, record)


def _refuse_new_weights(game: ModelGame, repair: bool | None) -> None:
    """Raise `RequestError` where a checkpoint would need new weights that its quantisation does not take."""
    if game.players.sublayers is not None:
        raise RequestError(
            "halves of blocks are written as zeros, which this model's quantisation does not take: use layers as "
            "players, or prune the model first and quantise what comes out (layercoop-fast quantise)"
        )
    if repair:
        raise RequestError(
            "a repair is written as new weights, which this model's quantisation does not take: leave --repair out, or "
            "prune the model first and quantise what comes out (layercoop-fast quantise)"
        )


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - started, 3)


def same_model_on(game: ModelGame, spec: str, windows: int, tokens: int, seed: int) -> ModelGame:
    """The same model and utility on another text."""
    items = game.calibration if isinstance(game.calibration, Choices) else None
    text = load_for(
        game.utility,
        spec,
        game.checkpoint.tokenizer,
        game.skeleton,
        windows=windows,
        tokens=tokens,
        shots=0 if items is None else items.shots,
        share=items is None or items.share,
        seed=seed,
        chat=not isinstance(game.calibration, Choices) and game.calibration.chat,
    )
    return ModelGame(
        game.checkpoint,
        text,
        skeleton=game.skeleton,
        utility=game.utility,
        players=game.players,
        memory=game.memory,
        block_path=game.block_path,
        score_every=game.windows.score_every,
        on_progress=game.on_progress,
    )


def _prompts(game: ModelGame, heldout: str | None, count: int) -> Prompts | None:
    """Prompts from the held-out text, or the built-in one; None where nothing can be read or written."""
    spec = "builtin-heldout" if heldout in (None, "self") or isinstance(game.calibration, Choices) else heldout
    if game.checkpoint.tokenizer is None or not game.checkpoint.model.can_generate():
        return None
    text = read_text(str(spec))
    try:
        return Prompts.cut(text, game.checkpoint.tokenizer, count, game.skeleton.max_tokens)
    except RequestError:  # a text too short for so many prompts
        return None


def _beginnings(game: ModelGame, prompts: Prompts) -> list[str]:
    """The first tokens of each calibration window as text; of items with options none."""
    if not game.has_windows:
        return []
    return Prompts(game.windows.ids[:, :EXCERPT_TOKENS], prompts.tokenizer).texts()


def _quality(game: ModelGame, pair: Masks, repaired: Repaired | None) -> dict[str, dict[str, Any]]:
    """Worth, NLL, perplexity and NLL by window of the full and the pruned model, as JSON can hold them.

    Where a repair stays, the pruned model is the repaired one, and what it was before is beside it as `unrepaired`.
    """
    measured = game.evaluate(pair)
    worths, nll, window_nll = measured.worths.tolist(), measured.nll.tolist(), measured.window_nll
    names = ["full", "pruned"]
    if repaired is not None and repaired.kept:
        worth, own, by_window = repaired_windows(game, repaired)
        worths, nll, names = [*worths, worth], [*nll, own], ["full", "unrepaired", "pruned"]
        window_nll = np.vstack([window_nll, by_window])
    return {
        "worth": {name: finite_or_none(value) for name, value in zip(names, worths, strict=True)},
        "nll": {name: finite_or_none(value) for name, value in zip(names, nll, strict=True)},
        "ppl": {name: perplexity(value) for name, value in zip(names, nll, strict=True)},
        **({"window_nll": _by_window(names, window_nll)} if game.has_windows else {}),
    }


def _by_window(names: Sequence[str], window_nll: Floats) -> dict[str, list[float | None]]:
    return {name: [finite_or_none(value) for value in windows] for name, windows in zip(names, window_nll, strict=True)}


def _record(
    game: ModelGame,
    choice: Choice,
    quality: dict[str, Any],
    unseen: dict[str, Any] | None,
    costs: dict[str, Cost] | None,
    seed: int,
) -> dict[str, Any]:
    """`layercoop.json`, all but the seconds."""
    units = game.players.unit_masks(choice.mask[None])[0]
    label = game.players.label
    scores = None if choice.scores is None else [finite_or_none(score) for score in choice.scores]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "model": game.checkpoint.name,
        "players": game.players.kind,
        "n_players": game.n_players,
        "removed": [label(int(unit)) for unit in np.flatnonzero(~units)],
        "kept": [label(int(unit)) for unit in np.flatnonzero(units)],
        "method": choice.method,
        # Only the published procedure estimates contributions; what other methods rank by stands under `scores`.
        "shapley": scores if choice.method == "official" else None,
        "scores": scores,
        "worth": quality["worth"],
        "nll": quality["nll"],
        "ppl": quality["ppl"],
        "window_nll": quality.get("window_nll"),
        "params": _parameters(game),
        "calibration": game.calibration.description,
        "evaluations": asdict(game.evaluations),
        "cost": None if costs is None else {name: asdict(cost) for name, cost in costs.items()},
        "details": choice.details,
        "fingerprints": game.fingerprints,
        "seed": seed,
        "versions": {
            "layercoop_fast": layercoop_fast.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
        },
    }
    if unseen is not None:
        record["heldout"] = unseen
    return record


def _parameters(game: ModelGame) -> dict[str, Any]:
    """Parameters of the full model, tied ones once, and of each player."""
    alone = game.players.unit_masks(~np.eye(game.n_players, dtype=np.bool_))
    players = [sum(game.players.n_parameters(int(unit)) for unit in np.flatnonzero(~row)) for row in alone]
    return {"full": parameters_of(game.checkpoint.model.parameters()), "players": players}
