"""The loop of healing: steps, looks at the held-out windows, the best weights, and the state that a kill leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from layercoop_fast.healing.blocks import StudentBlocks
from layercoop_fast.healing.optimiser import MasterAdamW, learning_rate
from layercoop_fast.healing.options import HealRequest
from layercoop_fast.healing.processes import Processes
from layercoop_fast.healing.reading import Reader
from layercoop_fast.healing.state import SECONDS_BETWEEN, TIMES_ITS_COST, read_state, write_state
from layercoop_fast.healing.texts import HealingTexts, Place
from layercoop_fast.healing.watching import Look, look, mean_nll
from layercoop_fast.inputs.text import as_saved
from layercoop_fast.kernels.linear_divergence import TeacherStates, TopTokens, linear_divergence
from layercoop_fast.masks.types import Progress

OnLook = Callable[[dict[str, Any]], None]
"""Called with each point of the curve when it is there."""


class Teacher(Protocol):
    """What the student is to agree with."""

    def targets(self, places: Sequence[Place], ids: Tensor) -> TeacherStates | TopTokens:
        """Its distribution for windows `ids` (int64 [B, T]) that lie at `places`: B · T rows."""
        ...


@dataclass
class Course:
    """Where a run is.

    Attributes:
        step, tokens, seconds: done so far.
        curve: a point for each look, the first before any step.
        best: number of the curve's point whose weights are the best.
        loss, steps: sum of the losses since the latest look, and their number.
        stopped: why it ended early; None where it did not.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    loss: float = 0.0
    steps: int = 0
    stopped: str | None = None

    def looks(self, number: int) -> Look:
        """What a point of the curve saw."""
        return Look.of(self.curve[number])


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run works on.

    Attributes:
        student: that is trained.
        blocks: its blocks.
        trained: the parameters that are trained, by name, tensors [...].
        teacher: that it is to agree with.
        texts: that are read.
        request: how long, how large, how fast.
        rate: the largest learning rate.
        run: what the run is, as JSON can hold it: a state is taken up by the same run alone.
        state: file of the state.
        processes: that share the work.
    """

    student: Reader
    blocks: StudentBlocks
    trained: Mapping[str, nn.Parameter]
    teacher: Teacher
    texts: HealingTexts
    request: HealRequest
    rate: float
    run: dict[str, Any]
    state: Path
    processes: Processes


class Loop:
    """Trains the student of a plan; its weights are the best ones afterwards.

    Args:
        plan: what to work on.
        on_progress: called with (stage, done, total).
        on_look: called with each point of the curve.
    """

    def __init__(self, plan: Plan, on_progress: Progress | None = None, on_look: OnLook | None = None) -> None:
        self.plan = plan
        self.optimiser = MasterAdamW(plan.trained)
        self.course = Course()
        self._best: dict[str, Tensor] = {}
        told = plan.processes.first
        self._tell = on_progress if told and on_progress is not None else lambda *_: None
        self._on_look = on_look if told and on_look is not None else lambda _: None
        self._saved = self._began = time.perf_counter()
        self._cost = 0.0  # seconds that the latest writing of the state took

    def run(self) -> Course:
        """Train until the time or the tokens are used up, or a loss is not finite."""
        request = self.plan.request
        if request.resume:
            self._load()
        else:
            self._look()
        course = self.course
        self._saved = time.perf_counter()
        self._began = self._saved - course.seconds
        while course.stopped is None and (share := self._share()) < 1:
            looked = course.tokens // request.watch_every
            self.step(share)
            if course.stopped is None and course.tokens // request.watch_every > looked and self._share() < 1:
                self._look()
            self._save_sometimes()
        if course.steps and course.stopped is None:
            self._look()
        with torch.no_grad():
            for name, value in self._best.items():
                self.plan.trained[name].copy_(value)
        return course

    def _share(self) -> float:
        """The share of the run that is done, the same in all processes."""
        course, request = self.course, self.plan.request
        course.seconds = self.plan.processes.of_first(time.perf_counter() - self._began)
        if request.seconds is not None:
            self._tell("seconds of healing", int(min(course.seconds, request.seconds)), int(request.seconds))
            return course.seconds / request.seconds
        assert request.tokens is not None
        self._tell("tokens of healing", min(course.tokens, request.tokens), request.tokens)
        return course.tokens / request.tokens

    def step(self, share: float) -> None:
        """Read a batch and update the weights; `share` of the run is done. What is not finite changes nothing."""
        plan, course = self.plan, self.course
        own = plan.processes.share(plan.request.batch)
        places = plan.texts.places(course.step, plan.request.batch)[own]
        ids = plan.texts.windows(places).to(plan.student.projection.weight.device)
        teacher = plan.teacher.targets(places, ids)
        with torch.enable_grad(), plan.blocks.training():
            loss = linear_divergence(plan.student.states(ids), plan.student.head, teacher)
            loss.backward()  # type: ignore[no-untyped-call]
        plan.processes.average(self.optimiser.gradients if plan.processes.size > 1 else [])
        value = plan.processes.of_first(float(loss.detach()))
        if not (math.isfinite(value) and self.optimiser.step(learning_rate(plan.rate, share))):
            what = "the loss is" if not math.isfinite(value) else "a gradient is"
            course.stopped = f"{what} not finite after {course.tokens:,} tokens: healing stopped at its best state"
            return
        course.step += 1
        course.tokens += plan.request.batch * plan.request.window
        course.loss += value
        course.steps += 1

    def _look(self) -> None:
        """Add a point to the curve, and keep the weights where no kind is worse than before and the mean is lowest."""
        course = self.course
        self._tell("looking at held-out text", 0, 1)
        found = look(self.plan.student, self.plan.texts)
        first = not course.curve
        better = first or (not found.harms(course.looks(0)) and found.mean < course.looks(course.best).mean)
        point = {
            "tokens": course.tokens,
            "seconds": round(course.seconds, 1),
            "loss": course.loss / course.steps if course.steps else None,
            **found.as_json(),
            "watched": self._watched(),
            "best": better and not first,
        }
        course.loss, course.steps = 0.0, 0
        course.curve.append(point)
        if better:
            course.best = len(course.curve) - 1
            for name, parameter in self.plan.trained.items():
                self._best.setdefault(name, torch.empty_like(parameter, requires_grad=False)).copy_(parameter.detach())
        self._tell("looking at held-out text", 1, 1)
        self._on_look(point)

    def _watched(self) -> dict[str, float | None]:
        """Mean NLL of the texts that are only looked at; the clock stands still meanwhile."""
        started = time.perf_counter()
        device = self.plan.student.projection.weight.device
        found = {spec: mean_nll(self.plan.student, ids.to(device)) for spec, ids in self.plan.texts.watched.items()}
        self._began += time.perf_counter() - started
        return {spec: nll if math.isfinite(nll) else None for spec, nll in found.items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {**self.optimiser.tensors(), **{f"best/{name}": value for name, value in self._best.items()}}

    def _save_sometimes(self) -> None:
        if time.perf_counter() - self._saved >= max(SECONDS_BETWEEN, TIMES_ITS_COST * self._cost):
            self.save()

    def save(self) -> None:
        """Write the state; the first process does, and the clock stands still meanwhile."""
        started = time.perf_counter()
        if self.plan.processes.first:
            about = {"run": self.plan.run, "course": asdict(self.course)}
            write_state(self.plan.state, self._tensors(), about)
        self._saved = time.perf_counter()
        self._cost = self._saved - started
        self._began += self._cost

    def _load(self) -> None:
        """Take up the state of a stopped run."""
        self._best = {name: torch.empty_like(one, requires_grad=False) for name, one in self.plan.trained.items()}
        tensors, about = read_state(self.plan.state, self._tensors())
        with as_saved(str(self.plan.state)):
            self.course = Course(**about["course"])
            _ = [self.course.looks(number) for number in (0, self.course.best)]
            self.optimiser.load(tensors)
        for name, value in self._best.items():
            value.copy_(tensors[f"best/{name}"])
