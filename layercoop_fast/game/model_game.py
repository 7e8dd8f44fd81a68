"""The game that a real model plays: masks in, worths out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from layercoop_fast import _C
from layercoop_fast._version import __version__
from layercoop_fast.engine.loading import Checkpoint, fingerprint, open_checkpoint
from layercoop_fast.engine.precision import warn_if_slow
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.game.importance import angular_distances, block_influence, cka_distances, taylor_importance
from layercoop_fast.game.item_utility import ChoiceUtility
from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.game.remote import measure_by_workers, numerics_of_workers, opening_of
from layercoop_fast.game.runs import Kept, asked_once, run_on
from layercoop_fast.game.staged import StagedGame, anew, part_of, require_windows, with_utility
from layercoop_fast.game.store import Store, check_store, mask_key
from layercoop_fast.game.utility import Utility, get_utility
from layercoop_fast.game.worths import Worths
from layercoop_fast.inputs.options import TOKENS, WINDOWS
from layercoop_fast.masked.flops import count_flops
from layercoop_fast.masked.forward import free_memory, play, split_memory, states_within
from layercoop_fast.masked.item_scoring import make_choice_scorer
from layercoop_fast.masked.plan import build_plan, count_evaluations
from layercoop_fast.masked.players import Label, Players, make_players
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masked.scoring import InOrder, Scorer, make_scorer, scores_behind
from layercoop_fast.masked.trees import check_trees
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.windows import Windows
from layercoop_fast.masks.types import Floats, Masks, Progress, check_masks
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.texts.domains import Domains
from layercoop_fast.texts.items import Items, check_choices, load_for
from layercoop_fast.texts.mixture import Texts, texts_of
from layercoop_fast.workers.dispatch import Workers
from layercoop_fast.workers.opening import hire

# States of a chunk where measured masks are kept in a store: wide enough batches, and a chunk takes seconds.
STATES_WITH_STORE = 64
# Share of the free memory that stored states may take where no budget is stated.
DEFAULT_MEMORY_SHARE = 0.25


@dataclass
class Evaluations:
    """What a game has been asked and what that cost, summed over its calls.

    Attributes:
        masks: masks asked for, repeats included.
        unique: masks that were really measured.
        layer_evals: unit evaluations done (one block, or half a block, on the tokens of one state).
        layer_evals_naive: what computing every asked mask by itself, all units, takes.
        token_evals: everything spent, in layers times tokens: evaluations of masks on all windows and on some of them,
            and the passes of rules that mask nothing (a backward pass as two forward ones). Half a block is half a
            layer; heads are not counted.
    """

    masks: int = 0
    unique: int = 0
    layer_evals: int = 0
    layer_evals_naive: int = 0
    token_evals: int = 0


class ModelGame:
    """Layers (or finer players), a model's quality on calibration text as worth.

    `game(masks)` takes bool [M, n] (True = kept) and returns float64 [M]. Measured masks are remembered, so asking
    again is free; a worth does not depend on what else was asked, in what order, or under what memory budget.
    With a store they are remembered beyond the process, and committed there before any progress or worth is reported.

    Args:
        checkpoint: the opened model.
        calibration: token windows for it, or items with options (`texts/items.py`).
        utility: "ppl_ratio" (default, as published), "nll", "kl", "blend:0.5" (shares of NLL and KL), or a `Utility`;
            with ":worst" behind it on the worst of several texts (`game/utility.py`); of items "accuracy",
            "accuracy_norm", "margin", "margin_norm", or a `ChoiceUtility` (`game/item_utility.py`).
        players: "layers", "sublayers", groups of labels, or a .json file of them (`masked/players.py`).
        memory: bytes for stored states and the activations of one call (`masked/forward.py`, `split_memory`); default a
            quarter of what is free.
        block_path: "auto": fast blocks and the fused head where they fit and agree with the model's own; "hf": the
            model's own only.
        score_every: score every so many-th position of a window, the others being context: cheaper worths of a larger
            standard error (`Worths.nll_stderr`). On the fast paths the head, and all but the attention of a mask's last
            block, run for scored positions alone.
        store: file to take known masks from and to keep measured ones in (`game/store.py`).
        workers: what measures masks instead of this process (docs/clusters.md). The model is then here for its shape,
            fingerprint and text alone, on its own blocks.
        on_progress: called with ("layer evaluations", done, all of this call) while masks are measured; a head counts
            for as many evaluations as it takes FLOP.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Calibration | Items,
        *,
        skeleton: Skeleton | None = None,
        utility: str | Utility | ChoiceUtility = "ppl_ratio",
        players: str | Sequence[Sequence[Label]] | Players = "layers",
        memory: int | None = None,
        block_path: str = "auto",
        score_every: int = 1,
        store: str | Path | None = None,
        workers: Workers | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.calibration = calibration
        self.skeleton = skeleton or Skeleton(checkpoint.model, streamed=checkpoint.streamed)
        self.utility = get_utility(utility)
        self.players = make_players(players, self.skeleton)
        packs = check_choices(calibration, self.utility, score_every)
        self.windows = Windows(
            self.skeleton,
            calibration.ids,
            score_every,
            None if packs is None else packs.positions,
            None if isinstance(calibration, Items) else calibration.pictures,
        )
        if self.windows.pictures is not None and workers is not None:
            raise RequestError("pictures are not sent to workers: leave one of the two out")
        if self.windows.positions is not None:
            check_trees(self.windows)
        self.block_path = block_path
        self.workers = workers
        path = block_path if workers is None else "hf"
        self.units = make_units(
            self.windows, self.players.run, halves=self.players.sublayers is not None, block_path=path
        )
        self.scorer: Scorer = (
            make_scorer(self.windows, block_path=path)
            if packs is None
            else make_choice_scorer(self.windows, packs, block_path=path)
        )
        self.memory = memory
        if memory is not None:
            states_within(self.windows, memory)  # a budget too small is said now, not at the first call
        self.on_progress = on_progress
        self.evaluations = Evaluations()
        # All counts that an evaluation of this game adds to: its own, and those of the game it is a part of.
        self.charged: tuple[Evaluations, ...] = (self.evaluations,)
        self._fingerprints: dict[str, Any] | None = None
        self._known = KnownScores() if store is None else self._claim(Store(store, write=True))
        self._has_teacher = False
        # Of a run: the game that measures for it, and what rules said of the full model. See `game/runs.py`.
        self.source: ModelGame | None = None
        self.kept = Kept()

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        calibration: Texts = "builtin",
        *,
        utility: str | Utility | ChoiceUtility = "ppl_ratio",
        players: str | Sequence[Sequence[Label]] = "layers",
        windows: int = WINDOWS,
        tokens: int = TOKENS,
        shots: int = 0,
        share_context: bool = True,
        seed: int = 0,
        dtype: str | torch.dtype = "auto",
        device: str = "cpu",
        memory: int | None = None,
        blocks: str | None = None,
        block_path: str = "auto",
        score_every: int = 1,
        trust_remote_code: bool = False,
        store: str | Path | None = None,
        workers: int | str | None = None,
        tolerant: bool = False,
        offload: bool = False,
        chat: bool = False,
        on_progress: Progress | None = None,
    ) -> ModelGame:
        """Open a checkpoint and cut its calibration windows; see the class, `open_checkpoint` and `load_calibration`.

        With a utility of items the calibration is items with options (`load_choices`): `windows` of `tokens` tokens
        where they are cut from a text, `shots` examples before each, and contexts that are computed once for all that
        follows them unless `share_context` is false.

        With `workers` (a number of local processes, "ray" or "ray:HOST:PORT") these measure on `device`, and the model
        is opened on the CPU here; `tolerant` takes workers on unlike machines.

        The calibration is one SPEC or several, each with a weight if wanted (`texts/mixture.py`): `windows` windows are
        cut from every text. With `chat` they go through the model's chat template (`texts/chat.py`).

        Raises `RequestError` in one line for whatever is wrong with the request.
        """
        if getattr(get_utility(utility), "objective", "mean") == "worst" and len(texts_of(calibration)) == 1:
            raise RequestError("the worst of several texts is asked for and there is one: give --calibration again")
        if store is not None:
            check_store(Path(store))
        with ExitStack() as undo:
            hired, measured_on = None, device
            if workers is not None:
                if offload:
                    raise RequestError("--offload reads blocks for one process: leave it out, or --workers")
                opening = opening_of(
                    path, dtype=dtype, device=device, trust_remote_code=trust_remote_code, blocks=blocks
                )
                hired = hire(workers, opening, device=device, tolerant=tolerant)
                undo.callback(hired.close)
                device = "cpu"
            elif tolerant:
                raise RequestError("--tolerant is about workers on unlike machines: it belongs to --workers")
            checkpoint = open_checkpoint(
                path, dtype=dtype, device=device, trust_remote_code=trust_remote_code, offload=offload, blocks=blocks
            )
            skeleton = Skeleton(checkpoint.model, blocks, checkpoint.streamed)
            if dtype == "auto" and measured_on == "cpu" and not str(workers).startswith("ray"):
                warn_if_slow(skeleton.dtype)
            text = load_for(
                get_utility(utility),
                calibration,
                checkpoint.tokenizer,
                skeleton,
                windows=windows,
                tokens=tokens,
                shots=shots,
                share=share_context,
                seed=seed,
                chat=chat,
                progress=on_progress,
            )
            game = cls(
                checkpoint,
                text,
                skeleton=skeleton,
                utility=utility,
                players=players,
                memory=memory,
                block_path=block_path,
                score_every=score_every,
                store=store,
                workers=hired,
                on_progress=on_progress,
            )
            undo.pop_all()
            return game

    @property
    def n_players(self) -> int:
        """Number of players n."""
        return self.players.n_players

    @property
    def n_known(self) -> int:
        """Masks that were measured, or found in the store when they were asked for."""
        return len(self._known)

    def known_masks(self) -> Masks:
        """The masks that `n_known` counts, bool [K, n]."""
        packed = np.frombuffer(b"".join(self._known.keys), np.uint8).reshape(self.n_known, -(-self.n_players // 8))
        return np.unpackbits(packed, axis=1, count=self.n_players).astype(np.bool_)

    def known_worths(self) -> Floats:
        """The worths of `known_masks`, float64 [K]; none where the full model is not known. Nothing counts as asked."""
        full = np.ones(self.n_players, dtype=np.bool_)
        if not self.holds(full):
            return np.empty(0)
        scores = [self._known[key] for key in self._known.keys]
        nll, kl = (np.array([getattr(one, name) for one in scores]) for name in ("nll", "kl"))
        with np.errstate(all="ignore"):
            text = self.fingerprints["calibration"]
            worths, _ = self.utility.judge(nll, kl, self._known[mask_key(full)].nll, text)
        return worths

    @property
    def weights_read(self) -> int:
        """Bytes of weights read from files so far because the blocks are streamed; 0 where they are in memory."""
        return 0 if self.skeleton.streamed is None else self.skeleton.streamed.bytes_read

    def close(self) -> None:
        """Close the store and end the workers, where there are some.

        What is known stays known, and is kept in memory only from here on.
        """
        if self.workers is not None:
            self.workers.close()
        self._known.close()

    def __call__(self, masks: Masks) -> Floats:
        """Worths of masks: bool [M, n] → float64 [M]."""
        return self.evaluate(masks).worths

    def evaluate(self, masks: Masks) -> Worths:
        """Measure masks (bool [M, n]) and return their worths with the NLL of every window."""
        masks = check_masks(masks, self.n_players)
        scores = self.window_scores(masks)
        full = self._known[mask_key(np.ones(self.n_players, dtype=np.bool_))].nll
        # Overflow to infinity and NaN are results here, not accidents.
        with np.errstate(all="ignore"):
            worths, nll = self.utility.judge(scores.nll, scores.kl, full, self.fingerprints["calibration"])
        return Worths(masks, worths, nll, scores.nll, self.window_tokens, self.fingerprints)

    def window_scores(self, masks: Masks) -> Scores:
        """Measure masks (bool [M, n]): mean NLL of each window, and KL where the utility needs it, float64 [M, W].

        Of items with options: the NLL of every scored token, float64 [M, N].
        """
        masks = check_masks(masks, self.n_players)
        self._measure(masks)
        self.evaluations.masks += len(masks)
        self.evaluations.layer_evals_naive += len(masks) * self.players.n_units
        scores = [self._known[mask_key(mask)] for mask in masks]
        shape = len(masks), len(self.window_tokens)
        return Scores(*(np.array([getattr(one, name) for one in scores]).reshape(shape) for name in ("nll", "kl")))

    @property
    def has_windows(self) -> bool:
        """Whether scores are of windows of a text, which can be raced on a few; items with options share theirs."""
        return not isinstance(self.calibration, Items)

    @property
    def domains(self) -> Domains | None:
        """Which text each window is of, where the calibration is several texts."""
        return None if isinstance(self.calibration, Items) else self.calibration.domains

    def part(self, first: int, last: int) -> ModelGame:
        """The same game on windows `first` to `last` − 1 alone (`game/staged.py`)."""
        return part_of(self, first, last)

    def anew(self) -> ModelGame:
        """The same game with nothing known and nothing counted, and no store (`game/staged.py`)."""
        return anew(self)

    def run(self) -> ModelGame:
        """The same game with nothing known and nothing counted, for which this one measures (`game/runs.py`)."""
        return run_on(self)

    def staged(self, ends: Sequence[int]) -> StagedGame:
        """This game on growing numbers of its windows, for masks that race each other (`game/staged.py`)."""
        return StagedGame(self, ends)

    def with_utility(self, utility: str | Utility | ChoiceUtility) -> ModelGame:
        """The same game with another worth, the model and all counts shared (`game/staged.py`)."""
        return with_utility(self, utility)

    def holds(self, mask: Masks) -> bool:
        """Whether a mask (bool [n]) is known already, in memory or in the store."""
        return mask_key(mask) in self._known

    def learn(self, mask: Masks, scores: Scores) -> None:
        """Take in the scores (float64 [W] each) of a mask (bool [n]) that were measured window by window elsewhere."""
        if not self.holds(mask):
            self._known.add(mask_key(mask), scores)
            self.evaluations.unique += 1
            if self.source is not None:
                self.source.learn(mask, scores)

    def charge(self, units: int) -> None:
        """Count unit evaluations, each on all tokens of this game's windows, in `token_evals`."""
        layer_tokens = units * self.windows.ids.numel() // (1 if self.players.sublayers is None else 2)
        for counts in self.charged:
            counts.token_evals += layer_tokens

    def block_influence(self) -> Floats:
        """How much each player turns the stream, float64 [n] (`game/importance.py`)."""
        return asked_once(self, block_influence)

    def cka_distances(self) -> Floats:
        """1 − CKA of what each player receives and returns in the full model, float64 [n] (`game/importance.py`)."""
        return asked_once(self, cka_distances)

    def zigzag_changes(self) -> Floats:
        """Share of components and loops that each player makes or ends, float64 [n] (`game/topology.py`)."""
        from layercoop_fast.game.topology import zigzag_changes

        return asked_once(self, zigzag_changes)

    def angular_distances(self, run_length: int) -> Floats:
        """Angle that each run of players turns the stream by, float64 [n − run_length + 1] (`game/importance.py`)."""
        require_windows(self, "angular distances")
        return asked_once(self, angular_distances, run_length)

    def taylor_importance(self, progress: Progress | None = None) -> Floats:
        """First-order importance of each player from gradients, float64 [n] (`game/importance.py`)."""
        require_windows(self, "gradients")
        return asked_once(self, taylor_importance, progress=progress)

    @property
    def fingerprints(self) -> dict[str, Any]:
        """What a worth of this game belongs to; worths with other fingerprints must not be mixed with it."""
        # No `cached_property`: up to Python 3.11 that locks the property of all games while workers are waited for.
        if self._fingerprints is None:
            game = {
                "model": fingerprint(self.checkpoint.model, self.skeleton.streamed),
                "calibration": self.calibration.fingerprint,
                "utility": self.utility.name,
                "score_every": self.windows.score_every,
                "players": self.players.description,
                "dtype": str(self.skeleton.dtype).removeprefix("torch."),
            }
            numerics = self._numerics if self.workers is None else numerics_of_workers(self, game)
            self._fingerprints = {**game, "numerics": numerics}
        return self._fingerprints

    @property
    def _numerics(self) -> dict[str, Any]:
        """What decides the bits of a worth that this process measures."""
        on_gpu = self.skeleton.device.type == "cuda"
        shared = ("shared" if self.calibration.share else "whole") if isinstance(self.calibration, Items) else None
        return {
            "layercoop_fast": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": str(self.skeleton.device),
            **({"gpu": torch.cuda.get_device_name(self.skeleton.device)} if on_gpu else {}),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "kernels": _C.isa(),
            "threads": torch.get_num_threads(),
            "blocks": self.units.path,
            "head": self.scorer.path,
            **({"context": shared} if shared else {}),
        }

    @property
    def window_tokens(self) -> NDArray[np.int64]:
        """Scored tokens of each window, int64 [W]; of items with options 1 for each scored token, int64 [N]."""
        if isinstance(self.calibration, Items):
            return np.ones(len(self.calibration.packs.of_token), dtype=np.int64)
        return np.full(self.windows.n_windows, len(self.windows.scored), dtype=np.int64)

    def _claim(self, store: Store, *, beside: bool = False) -> KnownScores:
        """This game's part of an open store, added `beside` the games of others there where that is asked."""
        tokens = self.window_tokens.tolist()
        return KnownScores(store, store.claim(self.fingerprints, self.n_players, tokens, beside=beside))

    def _measure(self, masks: Masks) -> None:
        """Measure the masks (bool [M, n]) that are not known yet."""
        unknown, _ = self.unknown(masks)
        if not len(unknown):
            return
        if self.source is not None:
            self._have_measured(unknown, self.source)
            return
        if self.workers is not None:
            measure_by_workers(self, unknown, self._known)
            return
        keys = [mask_key(mask) for mask in unknown]
        if self.utility.needs_teacher:
            self.keep_teacher()
        states, max_rows = self.limits()
        plan = build_plan(self.players.unit_masks(unknown), states)
        rows = plan.unique_rows
        # Progress is by cost: a head counts for as many units as it takes FLOP, so that the time left is true.
        head_cost = self.head_cost if self.on_progress is not None else 0.0
        total = round(plan.scheduled + head_cost * plan.n_unique)
        done = 0.0
        reported = 0

        def report() -> None:
            nonlocal reported
            # Nothing is reported that a kill could still take back.
            if self.on_progress is not None and round(done) > reported and self._known.settled:
                reported = round(done)
                self.on_progress("layer evaluations", reported, total)

        def take(number: int, scores: Scores) -> None:
            nonlocal done
            self._known.add(keys[rows[number]], scores)
            done += head_cost
            report()

        scored = InOrder(self.scorer, take, scores_behind(self.windows))

        def progress(evaluations: int) -> None:
            nonlocal done
            done += evaluations
            self._known.commit_when_due()
            report()

        try:
            play(self.windows, plan, scored.begin, units=self.units, max_rows=max_rows, on_progress=progress)
            scored.finish()
        finally:
            self._known.commit()  # after Ctrl-C too
        report()
        self.evaluations.unique += plan.n_unique
        self.evaluations.layer_evals += plan.scheduled
        self.charge(plan.scheduled)

    def _have_measured(self, masks: Masks, source: ModelGame) -> None:
        """Have a run's masks (bool [M, n], distinct) measured by its source, at the cost of measuring all of them."""
        scores = source.window_scores(masks)
        for mask, nll, kl in zip(masks, scores.nll, scores.kl, strict=True):
            self._known.add(mask_key(mask), Scores(nll, kl))
        if self.utility.needs_teacher and not self._has_teacher:
            self._has_teacher = True
            self.charge(self.players.n_units)
        evaluations = count_evaluations(self.players.unit_masks(masks)).plan
        self.evaluations.unique += len(masks)
        self.evaluations.layer_evals += evaluations
        self.charge(evaluations)

    def unknown(self, masks: Masks) -> tuple[Masks, int]:
        """The distinct masks that `evaluate(masks)` will measure, bool [U, n], and how many there are in all.

        The full model is always among the latter: worths are relative to it.
        """
        everything = np.ones((1, self.n_players), dtype=np.bool_)
        wanted = {mask_key(mask): mask for mask in np.concatenate([masks, everything])}
        unknown = [mask for key, mask in wanted.items() if key not in self._known]
        return np.array(unknown, dtype=np.bool_).reshape(len(unknown), self.n_players), len(wanted)

    @cached_property
    def flops(self) -> tuple[Floats, float]:
        """FLOP of each unit on one state (float64 [U]) and of the head on one (`masked/flops.py`)."""
        units, head = count_flops(self.windows, self.players.n_units, self.players.run)
        return units, head * self.scorer.share

    @property
    def head_cost(self) -> float:
        """FLOP of the head over those of a mean unit."""
        units, head = self.flops
        return head / float(units.mean()) if units.any() else 1.0

    def limits(self) -> tuple[int, int]:
        """How many states a plan may hold, and how many rows a call may have.

        With a store chunks are kept short, since a kill costs the chunk in flight: most masks of one are scored at its
        end. So many states are enough to compute nothing twice. Where blocks are streamed a chunk is as wide as memory
        allows: its masks share what is read.
        """
        states, max_rows = split_memory(self.windows, self.units, self.memory_budget())
        if self._known.store is not None and self.skeleton.streamed is None:
            states = min(states, STATES_WITH_STORE)
        return states, max_rows

    def memory_budget(self) -> int:
        """Bytes for stored states and the activations of one call: as asked, or a quarter of what is free now."""
        if self.memory is not None:
            return self.memory
        return max(self.windows.state_bytes, int(free_memory(self.skeleton.device) * DEFAULT_MEMORY_SHARE))

    def keep_teacher(self) -> bool:
        """Keep the full model's last state, for the divergence of others from it; whether it had to be run for that."""
        if self._has_teacher:
            return False
        everything = np.ones((1, self.players.n_units), dtype=np.bool_)
        play(
            self.windows,
            build_plan(everything, None),
            lambda _, state: self.scorer.keep_teacher(state),
            units=self.units,
        )
        self.charge(self.players.n_units)
        self._has_teacher = True
        return True
