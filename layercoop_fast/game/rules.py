"""What the full model alone says about its players, as a part of games on models (`masked/importance.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from layercoop_fast.masked.importance import (
    FORWARD_AND_BACKWARD,
    angular_distances,
    block_influence,
    cka_distances,
    taylor_importance,
)
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.masked.topology import zigzag_changes
from layercoop_fast.masks.types import Floats, Progress

GameT = TypeVar("GameT", bound="FullModelRules[Any]")


class FullModelRules(ABC, Generic[GameT]):
    """Rules that rank players without masking any. A run has them from its source, at the cost that they have there."""

    masked: MaskedModel
    source: GameT | None
    _answers: dict[tuple[object, ...], Floats]

    def block_influence(self) -> Floats:
        """How much each player turns the stream, float64 [n]."""
        return self._asked(block_influence)

    def cka_distances(self) -> Floats:
        """1 − CKA of what each player receives and returns in the full model, float64 [n]."""
        return self._asked(cka_distances)

    def zigzag_changes(self) -> Floats:
        """Share of components and loops that each player makes or ends, float64 [n]."""
        return self._asked(zigzag_changes)

    def angular_distances(self, run_length: int) -> Floats:
        """Angle that each run of players turns the stream by, float64 [n − run_length + 1]."""
        return self._asked(angular_distances, run_length)

    def taylor_importance(self, progress: Progress | None = None) -> Floats:
        """First-order importance of each player from gradients, float64 [n]."""
        return self._asked(taylor_importance, passes=FORWARD_AND_BACKWARD, progress=progress)

    @abstractmethod
    def charge(self, units: int) -> None:
        """Count unit evaluations, each on all tokens of the windows."""

    def _asked(self, rule: Callable[..., Floats], *arguments: int, passes: int = 1, **options: Any) -> Floats:
        """`rule(model, *arguments, **options)`, at the cost of `passes` passes. No option changes the answer."""
        if self.source is None:
            found = rule(self.masked, *arguments, **options)
        else:
            key = (rule.__name__, *arguments)
            if key not in self.source._answers:
                self.source._answers[key] = self.source._asked(rule, *arguments, passes=passes, **options)
            found = self.source._answers[key].copy()
        self.charge(passes * self.masked.players.n_units)
        return found
