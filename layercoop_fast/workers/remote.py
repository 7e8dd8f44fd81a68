"""A masked model whose masks are measured by workers: what they are told, and what is made of their answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from layercoop_fast.errors import RequestError
from layercoop_fast.masked.model import MaskedModel, Work
from layercoop_fast.masked.plan import Plan, build_plan
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Masks
from layercoop_fast.workers.cut import Task, cut_masks
from layercoop_fast.workers.dispatch import Workers

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(eq=False, kw_only=True)
class RemoteModel(MaskedModel):
    """A `MaskedModel` that workers measure. Here the model has its shape, fingerprint and text, on its own blocks.

    Attributes:
        workers: what measures, on the same checkpoint. They take the blocks of `block_path`.
    """

    workers: Workers

    @classmethod
    def by(cls, workers: Workers, model: MaskedModel, block_path: str) -> Self:
        """The same as `model`, measured by workers. Raises `RequestError` for pictures, which are not sent."""
        if model.windows.pictures is not None:
            raise RequestError("pictures are not sent to workers: leave one of the two out")
        shared = {each.name: getattr(model, each.name) for each in fields(model) if each.init}
        return cls(**{**shared, "block_path": block_path}, workers=workers)

    @property
    def n_workers(self) -> int:
        """Workers that measure."""
        return self.workers.transport.n_workers

    def measure(
        self,
        masks: Masks,
        take: Callable[[int, Scores], None],
        on_work: Callable[[Work], None] | None = None,
        *,
        short: bool = False,
    ) -> None:
        """Have masks, bool [M, n], measured by the workers, whose chunks are always short.

        Raises `RequestError` and `RunError` as `Workers.open` and `Workers.map` do; scores taken before stay taken.
        """
        own = self.fingerprints  # whose scores they will be is settled first
        workers = self._open()
        self._check_same(own)
        with closing(workers.map(masks, self._tasks(masks))) as stream:
            for results in stream:
                for row, nll, kl in zip(results.rows.tolist(), results.nll, results.kl, strict=True):
                    take(row, Scores(nll, kl))
                if on_work is not None:
                    on_work(Work(results.evaluations, workers.remaining, results.teacher))

    def plans(self, masks: Masks, *, short: bool = False) -> list[Plan]:
        """The plans of the tasks that masks, bool [M, n], are cut into."""
        states = self._open().states
        return [build_plan(self.players.unit_masks(masks[task.rows]), states) for task in self._tasks(masks)]

    def pilot(self) -> tuple[float, float]:
        """Seconds of a unit and of the head on one state, all workers at work: their means."""
        return self._open().pilot()

    def close(self) -> None:
        """End the workers; they start again when they are needed."""
        self.workers.close()
        super().close()

    def _tasks(self, masks: Masks) -> list[Task]:
        return cut_masks(self.players.unit_masks(masks), self.n_workers, head_cost=self.head_cost)

    def _open(self) -> Workers:
        """The workers, once they have the same model open on the same text."""
        about: dict[str, Any] = {
            "players": {
                "kind": self.players.kind,
                "groups": self.players.groups,
                "halves": self.players.sublayers is not None,
            },
            "teacher": self.teacher,
            "block_path": self.block_path,
            "score_every": self.windows.score_every,
            "memory": self.memory,
            **self.text.message(),
        }
        self.workers.open(about, ids=self.text.ids.cpu().numpy())
        return self.workers

    def _numerics(self, own: dict[str, Any]) -> dict[str, Any]:
        """The numerics of the workers' scores, once it is certain that they measure what these fingerprints say."""
        self._open()
        self._check_same(own)
        numerics: dict[str, Any] = self.workers.fingerprints["numerics"]
        return numerics

    def _check_same(self, own: dict[str, Any]) -> None:
        """Raise `RequestError` where the workers opened something else.

        Files may differ between machines, and weights may have been changed after they were opened here.
        """
        theirs = self.workers.fingerprints
        if unlike := [key for key in own if own[key] != theirs[key]]:
            raise RequestError(
                f"the workers' {' and '.join(unlike)} is not the one here: {self.workers.checkpoint['name']} must be "
                "the same checkpoint on every machine, since every worker opens it by itself"
            )
