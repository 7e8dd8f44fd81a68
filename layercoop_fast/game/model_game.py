"""The game on a real model: masks in, worths out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.game.counts import Call, Counts
from layercoop_fast.game.item_utility import ChoiceUtility
from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.game.opening import opened
from layercoop_fast.game.options import GameOptions
from layercoop_fast.game.rules import FullModelRules
from layercoop_fast.game.runs import BySource
from layercoop_fast.game.staged import StagedGame
from layercoop_fast.game.store import Store
from layercoop_fast.game.utility import Utility, check_fit, get_utility, with_objective
from layercoop_fast.game.worths import Worths
from layercoop_fast.inputs.options import takes
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.masked.players import Label, Players, make_players
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Floats, Masks, Progress, check_masks
from layercoop_fast.texts.mixture import Texts
from layercoop_fast.texts.text import Text, require_windows
from layercoop_fast.workers.dispatch import Workers
from layercoop_fast.workers.remote import RemoteModel


class ModelGame(FullModelRules["ModelGame"]):
    """Layers (or finer players), a model's quality on calibration text as worth.

    `game(masks)` takes bool [M, n] (True = kept) and returns float64 [M]. Measured masks are remembered, so asking
    again is free. A worth does not depend on what else was asked, in what order, or under what memory budget. With a
    store, masks are remembered beyond the process, and committed before any progress or worth is reported.

    Args:
        checkpoint: the opened model.
        calibration: token windows for it, or items with options (`texts/items.py`).
        utility: "ppl_ratio" (default, as published), "nll", "kl", "blend:0.5" (shares of NLL and KL), or a `Utility`.
            ":worst" behind the name takes the worst of several texts (`game/utility.py`). For items: "accuracy",
            "accuracy_norm", "margin", "margin_norm", or a `ChoiceUtility` (`game/item_utility.py`).
        players: "layers", "sublayers", groups of labels, or a .json file of them (`masked/players.py`).
        memory: bytes for stored states and the activations of one call (`masked/forward.py`, `split_memory`); default a
            quarter of what is free.
        block_path: "auto": fast blocks and the fused head where they fit and agree with the model's own; "hf": the
            model's own only.
        score_every: score every N-th position of a window, the others being context: cheaper worths of a larger
            standard error (`Worths.nll_stderr`). On the fast paths the head, and all but the attention of a mask's last
            block, run for scored positions alone.
        store: file to read known masks from and to keep measured ones in (`game/store.py`).
        workers: what measures masks instead of this process (docs/guides/clusters.md). The model then gives its shape,
            fingerprint and text alone, on its own blocks.
        on_progress: called with ("layer evaluations", done, all of this call) while masks are measured; a head counts
            for as many evaluations as it takes FLOP.

    Attributes:
        checkpoint: the opened model.
        masked: the model under masks, and the text it is measured on.
        utility: from scores to worths.
        known: the scores of the masks that were measured, or found in the store when they were asked for.
        evaluations: what was asked and what that cost.
        source: the game that measures for this one, where this one is a run (`game/runs.py`).

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import ModelGame
        >>> game = ModelGame.from_pretrained("my-model", calibration="self", windows=2, tokens=16)
        >>> masks = np.ones((2, game.n_players), dtype=bool)
        >>> masks[1, 2] = False  # the second mask removes layer 2
        >>> worths = game(masks)  # ppl(full model) / ppl(masked model)
        >>> worths.shape, float(worths[0])
        ((2,), 1.0)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Text,
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
        skeleton = skeleton or Skeleton(checkpoint.model, streamed=checkpoint.streamed)
        utility = get_utility(utility)
        players = make_players(players, skeleton)
        check_fit(calibration, utility, score_every)
        masked = MaskedModel.of(
            skeleton,
            players,
            calibration,
            teacher=utility.needs_teacher,
            memory=memory,
            block_path=block_path if workers is None else "hf",
            score_every=score_every,
        )
        if workers is not None:
            masked = RemoteModel.by(workers, masked, block_path)
        self._hold(checkpoint, masked, utility, (Counts(),), on_progress)
        if store is not None:
            self.known = self._claim(Store(store, write=True))

    def _hold(
        self,
        checkpoint: Checkpoint,
        masked: MaskedModel,
        utility: Utility | ChoiceUtility,
        charged: tuple[Counts, ...],
        on_progress: Progress | None,
        source: ModelGame | None = None,
    ) -> ModelGame:
        """Take these parts, with nothing known. `charged` are all counts that work adds to, the game's own first."""
        self.checkpoint = checkpoint
        self.masked = masked
        self.utility = utility
        self.known = KnownScores()
        self.evaluations = charged[0]
        self.source = source
        self.on_progress = on_progress
        self._charged = charged
        self._measurer = masked if source is None else BySource(source)
        # For runs: the views of this game that any of them asked for, and what rules said of the full model.
        self._views: dict[tuple[str, str], ModelGame] = {}
        self._answers: dict[tuple[object, ...], Floats] = {}
        return self

    @classmethod
    @takes(GameOptions)
    def from_pretrained(
        cls, path: str, calibration: Texts = "builtin", *, on_progress: Progress | None = None, **keywords: Any
    ) -> ModelGame:
        """Open a checkpoint and cut its calibration windows; see the class, `open_checkpoint` and `load_calibration`.

        With a utility of items the calibration is items with options (`load_items`): `windows` of `tokens` tokens where
        they are cut from a text, `shots` examples before each, and contexts that are computed once for all that follows
        them unless `share_context` is false.

        With `workers` (a number of local processes, "ray" or "ray:HOST:PORT") these measure on `device`, and the model
        is opened on the CPU here; `tolerant` accepts workers on machines that differ.

        The calibration is one SPEC or several, each with a weight if wanted (`texts/mixture.py`): `windows` windows are
        cut from every text. With `chat` they go through the model's chat template (`texts/chat.py`).

        Raises `RequestError` in one line for whatever is wrong with the request.
        """
        options = GameOptions(**keywords)
        own = ("utility", "players", "memory", "block_path", "score_every", "store")
        with opened(path, calibration, options, on_progress) as parts:
            return cls(
                parts.checkpoint,
                parts.text,
                skeleton=parts.skeleton,
                workers=parts.workers,
                on_progress=on_progress,
                **{name: getattr(options, name) for name in own},
            )

    @property
    def n_players(self) -> int:
        """Number of players n."""
        return self.masked.players.n_players

    @property
    def n_windows(self) -> int:
        """Windows of text that masks can be measured on one by one; 0 for items, which share windows."""
        return self.masked.windows.n_windows if self.masked.text.has_windows else 0

    @property
    def calibration(self) -> Text:
        """What the model is measured on: a `Calibration`, or `Items`."""
        return self.masked.text

    @property
    def fingerprints(self) -> dict[str, Any]:
        """What a worth of this game belongs to; worths with other fingerprints must not be mixed with it."""
        found = self.masked.fingerprints
        first = {name: found[name] for name in ("model", "calibration")}
        return {**first, "utility": self.utility.name, **found}

    def close(self) -> None:
        """Close the store and end the workers, where there are some.

        What is known stays known, and is kept in memory only from here on.
        """
        self.masked.close()
        self.known.close()

    def __call__(self, masks: Masks) -> Floats:
        """Worths of masks: bool [M, n] → float64 [M]."""
        return self.evaluate(masks).worths

    def evaluate(self, masks: Masks) -> Worths:
        """Measure masks (bool [M, n]) and return their worths with the NLL of every window."""
        masks = check_masks(masks, self.n_players)
        scores = self.window_scores(masks)
        worths, nll = self.judge(scores, self._known_full())
        return Worths(masks, worths, nll, scores.nll, self.masked.window_tokens, self.fingerprints)

    def window_scores(self, masks: Masks) -> Scores:
        """Measure masks (bool [M, n]): mean NLL of each window, and KL where the utility needs it, float64 [M, W].

        For items with options: the NLL of every scored token, float64 [M, N].
        """
        masks = check_masks(masks, self.n_players)
        unknown, _ = self.known.missing(masks)
        if len(unknown):
            self._measure(unknown)
        self.evaluations.masks += len(masks)
        self.evaluations.layer_evals_naive += len(masks) * self.masked.players.n_units
        return self.known.scores(masks, len(self.masked.window_tokens))

    def judge(self, scores: Scores, full: Floats) -> tuple[Floats, Floats]:
        """Worths and mean NLL, float64 [M] each.

        Args:
            scores: of masks on the first windows, float64 [M, w] with w ≤ W.
            full: NLL of the full model on these windows, float64 [w].
        """
        # Overflow to infinity and NaN are results here, not accidents.
        with np.errstate(all="ignore"):
            return self.utility.judge(scores.nll, scores.kl, full, self.masked.fingerprints["calibration"])

    def known_masks(self) -> Masks:
        """The masks that are known in memory, bool [K, n]."""
        return self.known.masks(self.n_players)

    def known_worths(self) -> Floats:
        """The worths of `known_masks`, float64 [K]; none where the full model is not known. Nothing counts as asked."""
        if not self.known.holds(np.ones(self.n_players, np.bool_)):
            return np.empty(0)
        return self.judge(self.known.scores(self.known_masks(), len(self.masked.window_tokens)), self._known_full())[0]

    def learn(self, masks: Masks, scores: Scores) -> None:
        """Take in the scores (float64 [M, W]) of masks (bool [M, n]) that were measured window by window elsewhere."""
        new = self.known.learn(masks, scores)
        self.evaluations.unique += int(new.sum())
        if self.source is not None:
            self.source.learn(masks[new], Scores(scores.nll[new], scores.kl[new]))

    def charge(self, units: int) -> None:
        """Count unit evaluations, each on all tokens of this game's windows, in `token_evals`."""
        layer_tokens = units * self.masked.windows.ids.numel() // (1 if self.masked.players.sublayers is None else 2)
        for counts in self._charged:
            counts.token_evals += layer_tokens

    def part(self, first: int, last: int) -> ModelGame:
        """The same game on windows `first` to `last` − 1 alone, cheap to make (`view`).

        What it costs counts in its own `evaluations`, and in `token_evals` of this game too. Raises `RequestError` for
        windows that do not exist.
        """
        return self.view(text=self.masked.text.part(first, last))

    def staged(self, ends: Sequence[int]) -> StagedGame:
        """This game on growing numbers of its windows, for masks that race each other (`game/staged.py`)."""
        require_windows(self.masked.text, "stages")
        return StagedGame(self, ends)

    def with_utility(self, utility: str | Utility | ChoiceUtility) -> ModelGame:
        """The same game with another worth, all counts shared (`view`); this game itself where that is its own.

        A game on the worst of several texts stays one, where a name says nothing about it ("kl:mean" does). Raises
        `RequestError` for a worth of text where this game is one on items with options, and the other way round.
        """
        utility = with_objective(utility, self.utility)
        if utility is self.utility:
            return self
        check_fit(self.masked.text, utility, self.masked.windows.score_every)
        return self.view(utility=utility, counts=self.evaluations)

    def run(self) -> ModelGame:
        """The same game with nothing known and nothing counted, for which this one measures (`game/runs.py`)."""
        return self._run((Counts(),))

    def view(
        self,
        *,
        text: Text | None = None,
        utility: Utility | ChoiceUtility | None = None,
        counts: Counts | None = None,
        apart: bool = False,
        stored: bool = True,
        by: Callable[[MaskedModel], MaskedModel] | None = None,
    ) -> ModelGame:
        """A new game with nothing known, on the same model, blocks and head; nothing is checked again.

        Args:
            text: another text with windows of the same length.
            utility: another worth.
            counts: where it counts. Default: in counts of its own, and what it costs in `token_evals` of this game too.
            apart: whether it counts in its own counts alone.
            stored: whether it is kept in the store of this game, where there is one, as a further game.
            by: makes the masked model that it measures on, from the one that it otherwise would. Not of a run.
        """
        text, utility = text or self.masked.text, utility or self.utility
        above = () if apart else self._charged
        charged = above if counts is self.evaluations else (counts or Counts(), *above)
        if self.source is not None:
            key = json.dumps(text.fingerprint), utility.name
            if key not in self.source._views:
                self.source._views[key] = self.source.view(text=text, utility=utility, counts=self.source.evaluations)
            return self.source._views[key]._run(charged)
        masked = self.masked.on(text, teacher=utility.needs_teacher)
        made = object.__new__(type(self))._hold(
            self.checkpoint,
            masked if by is None else by(masked),
            utility,
            charged,
            self.on_progress,
        )
        if stored and self.known.store is not None:
            made.known = made._claim(self.known.store, add=True)
        return made

    def _run(self, charged: tuple[Counts, ...]) -> ModelGame:
        return object.__new__(type(self))._hold(self.checkpoint, self.masked, self.utility, charged, None, self)

    def _claim(self, store: Store, *, add: bool = False) -> KnownScores:
        """This game's part of an open store, added to the other games there where `add` is set."""
        tokens = self.masked.window_tokens.tolist()
        return KnownScores(store, store.claim(self.fingerprints, self.n_players, tokens, add=add))

    def _known_full(self) -> Floats:
        """NLL of the full model, which is known, float64 [W]."""
        full: Floats = self.known.scores(np.ones((1, self.n_players), np.bool_), len(self.masked.window_tokens)).nll[0]
        return full

    def _measure(self, masks: Masks) -> None:
        """Measure masks, bool [M, n], all different and unknown."""
        head_cost = self.masked.head_cost if self.on_progress is not None else 0.0
        call = Call(self.known, masks, head_cost, self.on_progress)
        try:
            self._measurer.measure(masks, call.take, call.count, short=self.known.store is not None)
        finally:
            self.known.commit()  # after Ctrl-C too
            self.evaluations.unique += call.unique
            self.evaluations.layer_evals += call.work.evaluations
            self.charge(call.work.evaluations + call.work.teacher)
        call.finish()
