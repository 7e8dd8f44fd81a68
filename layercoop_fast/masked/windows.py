"""The calibration tokens of a game, and what is captured and kept for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.reference.attention import visible_rows
from layercoop_fast.kernels.rows import MIN_ROWS
from layercoop_fast.texts.pictures import Pictures


@dataclass
class Windows:
    """The calibration tokens of a game, and the contexts captured for them, one a batch width.

    Args:
        ids: int64 [W, T], W windows of T tokens each.
        score_every: every N-th of the T − 1 positions that have a next token is scored; the others are context.
        pictures: what a vision-language model sees before each window's text. The picture is context that all masks
            share; it is not scored.
        positions: int64 [W, T] where windows are trees of texts, written depth first (`kernels/attention.py`); the
            model must take positions and a mask for them, which `masked/trees.py` makes sure of.
        spans: int64 [W, 2], of each window the first token that is scored and the one behind the last; None: all.

    Raises `RequestError` where that leaves no position.
    """

    skeleton: Skeleton
    ids: Tensor
    score_every: int = 1
    positions: Tensor | None = None
    pictures: Pictures | None = None
    spans: Tensor | None = None
    _contexts: dict[int, Context] = field(default_factory=dict)
    _pool: Tensor | None = None
    faithful_widths: dict[tuple[object, ...], int] = field(default_factory=dict)
    """What `masked/batch_width.py` found out about batches of these windows."""

    def __post_init__(self) -> None:
        predicted = self.ids.shape[1] - 1 - (0 if self.pictures is None else self.pictures.first)
        if not 1 <= self.score_every <= predicted:
            raise RequestError(
                f"score_every must be from 1 to {predicted}, the positions of a window that have a next token, not "
                f"{self.score_every}"
            )
        if self.spans is not None and self.score_every > 1:
            raise RequestError("of answers every token is scored: leave score_every= out")

    @cached_property
    def _counted(self) -> Tensor | None:
        """Which scored positions of each window count, bool [W, S]; None: all."""
        if self.spans is None:
            return None
        return (self.scored + 1 >= self.spans[:, :1]) & (self.scored + 1 < self.spans[:, 1:])

    def means(self, losses: Tensor, first: int = 0) -> Tensor:
        """Mean losses of windows, [w], from those at their scored positions, [w, S], of windows `first` on."""
        if self._counted is None:
            return losses.mean(1)
        counted = self._counted[first : first + len(losses)].to(losses.device)
        return torch.where(counted, losses, 0).sum(1) / counted.sum(1)

    @cached_property
    def scored(self) -> Tensor:
        """The positions whose next token is scored, int64 [S]: the last of each run of `score_every`."""
        begin = 0 if self.pictures is None else self.pictures.first
        first = begin + self.score_every - 1
        with torch.inference_mode(False):  # gradients are computed at these positions too, whoever asks for them first
            return torch.arange(first, self.ids.shape[1] - 1, self.score_every, device=self.ids.device)

    @property
    def n_windows(self) -> int:
        """Number of windows W."""
        return int(self.ids.shape[0])

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Shape [W, T, H] of one state."""
        _, tokens, hidden = self.context(1).embedding.shape
        return self.n_windows, int(tokens), int(hidden)

    @property
    def state_bytes(self) -> int:
        """Bytes of one stored state."""
        return int(np.prod(self.state_shape)) * self.context(1).embedding.element_size()

    def context(self, copies: int) -> Context:
        """The context of `copies` states side by side, padded with further copies up to `MIN_ROWS` rows."""
        if copies not in self._contexts:
            padded = max(copies, -(-MIN_ROWS // self.ids.numel()))
            self._contexts[copies] = self.part(0, self.n_windows, padded)
        return self._contexts[copies]

    def part(self, first: int, last: int, copies: int = 1) -> Context:
        """Capture the context of windows first .. last (last excluded), `copies` times side by side."""
        ids = self.ids[first:last].repeat(copies, 1)
        if self.pictures is not None:
            return self.skeleton.context(ids, **self.pictures.part(first, last, self.n_windows, copies))
        if self.positions is None:
            return self.skeleton.context(ids)
        positions = self.positions[first:last]
        # Added to scores: nothing where a row sees another, and elsewhere what the model's own masks add.
        mask = torch.zeros(*positions.shape, positions.shape[1], dtype=self.skeleton.dtype, device=ids.device)
        mask.masked_fill_(~visible_rows(positions), torch.finfo(self.skeleton.dtype).min)
        return self.skeleton.context(
            ids, position_ids=positions.repeat(copies, 1), attention_mask=mask.repeat(copies, 1, 1)[:, None]
        )

    def slices(self, rows: int) -> list[tuple[int, int, Context]]:
        """Runs of windows of at most `rows` tokens (at least one window) with their contexts, for the head."""
        step = max(1, rows // int(self.ids.shape[1]))
        found = []
        for first in range(0, self.n_windows, step):
            ids = self.ids[first : first + step]
            padded = -(-MIN_ROWS // ids.numel())
            found.append((first, first + len(ids), self.part(first, first + len(ids), padded)))
        return found

    def pool(self, states: int) -> Tensor:
        """Memory for stored states, [states, W, T, H] with any content: the same at every call, grown as needed.

        Raises `RequestError` where the machine has not that much.
        """
        if self._pool is None or len(self._pool) < states:
            embedding = self.context(1).embedding
            self._pool = None  # the old one goes first: both need not fit
            try:
                self._pool = torch.empty((states, *self.state_shape), dtype=embedding.dtype, device=embedding.device)
            except RuntimeError as error:  # torch reports an allocation that fails so, on CPU and GPU
                wanted = states * self.state_bytes / 2**30
                raise RequestError(
                    f"{wanted:.1f} GiB for stored states are not free: give a smaller memory="
                ) from error
        return self._pool[:states]

    def free(self) -> None:
        """Give the pool's memory back; the next call of `pool` takes it again."""
        self._pool = None
