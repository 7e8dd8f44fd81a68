"""A model whose players can be masked, measured on one text.

    model = MaskedModel.of(skeleton, make_players("layers", skeleton), text)
    model.measure(masks, take)                      # take(row, scores) for each of the masks, bool [M, n]
    model.on(text.part(0, 2)).measure(masks, take)  # the same model, blocks and head on two windows

`measure` is the one loop from masks to scores, in the process of a game as in a worker. `workers/remote.py` has the
same interface for masks that workers measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers

from layercoop_fast import _C
from layercoop_fast._version import __version__
from layercoop_fast.engine.loading import fingerprint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.kernels.checks import kernels_used
from layercoop_fast.kernels.linear import core_multiplies
from layercoop_fast.masked.flops import count_flops
from layercoop_fast.masked.forward import RunPlayer, free_memory, run_plan, split_memory, states_within, wait_for
from layercoop_fast.masked.item_scoring import make_item_scorer
from layercoop_fast.masked.plan import Plan, build_plan
from layercoop_fast.masked.players import Players
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masked.scoring import InOrder, Scorer, make_scorer, scores_behind
from layercoop_fast.masked.trees import check_trees
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.units import Units
from layercoop_fast.masked.windows import Windows
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.texts.domains import Ints
from layercoop_fast.texts.text import Text

if TYPE_CHECKING:
    from typing_extensions import Self

# States of a short chunk: wide enough for good batches, and the chunk takes seconds.
SHORT_CHUNK = 64
# Share of the free memory that stored states may take where no budget is stated.
MEMORY_SHARE = 0.25
# The pilot stops after this long, but runs two units and one head at least.
PILOT_SECONDS = 2.0


class Work(NamedTuple):
    """Unit evaluations (one block, or half a block, on the tokens of one state).

    Attributes:
        evaluations: done since the last report.
        remaining: still to do for the masks in hand.
        teacher: done for the full model's state that others are compared with, since the last report.
    """

    evaluations: int
    remaining: int
    teacher: int = 0


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the masks of a call, and the plan that measures them.

    Attributes:
        rows: int64 [P], their rows among all.
        plan: of these.
        players: what each player of the plan is, where that is no unit.
    """

    rows: Ints
    plan: Plan
    players: Sequence[Any] = ()


@dataclass(eq=False)
class MaskedModel:
    """A model, its players, and the text that masks are measured on; `of` makes one.

    Attributes:
        skeleton: the model.
        players: what one bit of a mask removes.
        text: what it is measured on.
        windows: the tokens of the text with what is captured for them.
        units: how blocks, or halves of blocks, are computed.
        scorer: from a mask's last state to its scores.
        teacher: whether the divergence from the full model is measured.
        memory: bytes for stored states and the activations of one call; None: a quarter of what is free.
        block_path: "auto", or "hf" for the model's own blocks alone, as asked.
    """

    skeleton: Skeleton
    players: Players
    text: Text
    windows: Windows
    units: Units
    scorer: Scorer
    teacher: bool
    memory: int | None
    block_path: str
    _fingerprints: dict[str, Any] | None = None
    _has_teacher: bool = field(default=False, init=False)

    @classmethod
    def of(
        cls,
        skeleton: Skeleton,
        players: Players,
        text: Text,
        *,
        teacher: bool = False,
        memory: int | None = None,
        block_path: str = "auto",
        score_every: int = 1,
    ) -> MaskedModel:
        """Choose and check the blocks and the head for a text.

        Args:
            skeleton: the model.
            players: of the model.
            text: windows of text, or items with options.
            teacher: whether the divergence from the full model is measured too.
            memory: bytes for stored states and activations.
            block_path: "auto": fast blocks and the fused head where they fit and agree with the model's own; "hf": the
                model's own only.
            score_every: score every N-th position of a window.

        Raises `RequestError` for a text that the model cannot be measured on so, and for too little memory.
        """
        packs = text.packs
        positions = None if packs is None else packs.positions
        windows = Windows(skeleton, text.ids, score_every, positions, text.pictures, text.spans)
        if windows.positions is not None:
            check_trees(windows)
        halves = players.sublayers is not None
        units = make_units(windows, players.run, halves=halves, block_path=block_path)
        scorer: Scorer = (
            make_scorer(windows, block_path=block_path)
            if packs is None
            else make_item_scorer(windows, packs, block_path=block_path)
        )
        if memory is not None:
            states_within(windows, memory)  # a budget that is too small is refused now, not at the first call
        return cls(skeleton, players, text, windows, units, scorer, teacher, memory, block_path)

    def on(self, text: Text | None = None, *, teacher: bool | None = None) -> Self:
        """The same model on another text with windows of the same length, with or without a teacher.

        A new object that shares model, blocks and head; nothing is checked again. The text and the teacher stay as they
        are where they are not given.
        """
        fingerprints = self.fingerprints  # so that the weights are not read once more
        windows, units = self.windows, self.units
        if text is not None and text is not self.text:
            fingerprints = {**fingerprints, "calibration": text.fingerprint}
            windows = Windows(
                self.skeleton, text.ids, self.windows.score_every, pictures=text.pictures, spans=text.spans
            )
            units = self.units.on(windows)
        return replace(
            self,
            text=self.text if text is None else text,
            windows=windows,
            units=units,
            scorer=self.scorer.on(windows),
            teacher=self.teacher if teacher is None else teacher,
            _fingerprints=fingerprints,
        )

    def measure(
        self,
        masks: Masks,
        take: Callable[[int, Scores], None],
        on_work: Callable[[Work], None] | None = None,
        *,
        short: bool = False,
    ) -> None:
        """Measure masks, bool [M, n], all different.

        Args:
            masks: over players; those that begin alike share what they have in common.
            take: called with the row of each mask and its scores, float64 [W] each, in the order of the plan.
            on_work: called with what was done since its last call.
            short: keep chunks short where a stop costs the chunk in flight, since most of its masks are scored at its
                end. Streamed blocks take chunks as wide as memory allows all the same: their masks share what is read.
        """
        teacher = self.players.n_units if self.teacher and self._keep_teacher() else 0
        states, max_rows = self.limits(short=short)
        parts = self._parts(masks, states)
        remaining = sum(part.plan.scheduled for part in parts)

        def tell(evaluations: int, teacher: int = 0) -> None:
            nonlocal remaining
            remaining -= evaluations
            if on_work is not None:
                on_work(Work(evaluations, remaining, teacher))

        if teacher:
            tell(0, teacher)
        for part in parts:
            self._run(part, max_rows, take, tell)

    def plans(self, masks: Masks, *, short: bool = False) -> list[Plan]:
        """The plans by which masks, bool [M, n], would be measured."""
        return [part.plan for part in self._parts(masks, self.limits(short=short)[0])]

    def limits(self, *, short: bool = False) -> tuple[int, int]:
        """How many states a plan may store, and how many rows a call of a unit may have.

        A `short` chunk has enough states to compute nothing twice.
        """
        states, max_rows = split_memory(self.windows, self.units, self.memory_budget())
        if short and self.skeleton.streamed is None:
            states = min(states, SHORT_CHUNK)
        return states, max_rows

    def memory_budget(self) -> int:
        """Bytes for stored states and the activations of one call: as asked, or a quarter of what is free now."""
        if self.memory is not None:
            return self.memory
        return max(self.windows.state_bytes, int(free_memory(self.skeleton.device) * MEMORY_SHARE))

    @property
    def n_workers(self) -> int:
        """Processes that measure instead of this one: none."""
        return 0

    @property
    def weights_read(self) -> int:
        """Bytes of weights read from files so far because the blocks are streamed; 0 where they are in memory."""
        return 0 if self.skeleton.streamed is None else self.skeleton.streamed.bytes_read

    @property
    def window_tokens(self) -> Ints:
        """Scored tokens of each window, int64 [W]; for items 1 for each scored token, int64 [N]."""
        return self.text.scored(len(self.windows.scored))

    @property
    def filled(self) -> torch.Tensor | None:
        """Which tokens of the windows belong to items and are no padding, bool [W, T]; None for text: all do."""
        return None if self.text.packs is None else self.text.packs.filled

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

    @property
    def fingerprints(self) -> dict[str, Any]:
        """What decides the scores of a mask: model, text, players, and the numerics of whoever measures."""
        # No `cached_property`: up to Python 3.11 that locks the property of all objects while workers are waited for.
        if self._fingerprints is None:
            own = {
                "model": fingerprint(self.skeleton.model, self.skeleton.streamed),
                "calibration": self.text.fingerprint,
                "score_every": self.windows.score_every,
                "players": self.players.description,
                "dtype": str(self.skeleton.dtype).removeprefix("torch."),
            }
            self._fingerprints = {**own, "numerics": self._numerics(own)}
        return self._fingerprints

    def pilot(self) -> tuple[float, float]:
        """Seconds of a unit on one state (mean over those that were run), and of scoring one."""
        with torch.inference_mode():
            state = self.windows.context(1).embedding[: self.windows.n_windows].clone()
            self.skeleton.expect(range(self.skeleton.n_layers))
            self.units.run(0, [state], [state])  # the first call of anything is slow
            wait_for(self.skeleton.device)
            seconds: list[float] = []
            started = time.perf_counter()
            while len(seconds) < min(2, self.players.n_units) or (
                time.perf_counter() - started < PILOT_SECONDS and len(seconds) < self.players.n_units
            ):
                self.skeleton.block(self.players.layer(len(seconds)))  # reading it is not the unit's own time
                began = time.perf_counter()
                self.units.run(len(seconds), [state], [state])
                wait_for(self.skeleton.device)
                seconds.append(time.perf_counter() - began)
            self.scorer.score(state)
            began = time.perf_counter()
            self.scorer.score(state)
        return float(np.mean(seconds)), time.perf_counter() - began

    def close(self) -> None:
        """Give the memory of stored states back; a later call takes it again."""
        self.windows.free()

    def _numerics(self, own: dict[str, Any]) -> dict[str, Any]:
        """What decides the bits of scores that this process measures; `own` are the other fingerprints."""
        device = self.skeleton.device
        return {
            "layercoop_fast": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": str(device),
            **self._gpu(device),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "kernels": _C.isa(),
            **({"products": "core"} if device.type == "cpu" and core_multiplies(self.skeleton.dtype) else {}),
            "threads": torch.get_num_threads(),
            "blocks": self.units.path,
            "head": self.scorer.path,
            **self.text.numerics,
        }

    def _gpu(self, device: torch.device) -> dict[str, Any]:
        """The GPU, and which of its kernels were found right there and are used; nothing without one."""
        if device.type != "cuda":
            return {}
        return {"gpu": torch.cuda.get_device_name(device), "gpu_kernels": kernels_used(device, self.skeleton.dtype)}

    def _parts(self, masks: Masks, states: int) -> list[Part]:
        """Masks, bool [M, n], in parts that are measured one after the other, with so many stored states: here one."""
        return [Part(np.arange(len(masks)), build_plan(self.players.unit_masks(masks), states))]

    def _run(
        self,
        part: Part,
        max_rows: int,
        take: Callable[[int, Scores], None],
        tell: Callable[[int], None],
        run: RunPlayer | None = None,
    ) -> None:
        """Measure a part: the scores of its rows to `take`, unit evaluations to `tell`; `run` as of `run_plan`."""

        def scored(number: int, scores: Scores) -> None:
            take(int(part.rows[part.plan.unique_rows[number]]), scores)
            tell(0)

        in_order = InOrder(self.scorer, scored, scores_behind(self.windows))
        run_plan(
            self.windows, part.plan, in_order.begin, units=self.units, max_rows=max_rows, on_progress=tell, run=run
        )
        in_order.finish()

    def _keep_teacher(self) -> bool:
        """Keep the full model's last state, which others are compared with; whether it had to be run for that."""
        if self._has_teacher:
            return False
        everything = np.ones((1, self.players.n_units), dtype=np.bool_)
        run_plan(
            self.windows,
            build_plan(everything),
            lambda _, state: self.scorer.keep_teacher(state),
            units=self.units,
        )
        self._has_teacher = True
        return True
