"""From a mask's last state to the losses of every window: by the model's own head, or by head and loss in one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.engine.skeleton import Context
from layercoop_fast.llama.fused_head import FusedHead, fused_head
from layercoop_fast.masked.queues import queue_of
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masked.windows import Windows

# The general path holds logits for this many bytes at a time, counted in fp32: [rows, vocabulary].
HEAD_BYTES = 128 * 2**20
# Windows of the batch on which the fused head is compared with the model's own.
_CHECK_WINDOWS = 1
# Scores on their way from a GPU: the masks that are measured but not yet known, which a kill loses.
_BEHIND = 8


class Scorer(Protocol):
    """From the last state of a mask to its scores."""

    path: str
    """Name of the numerics, for fingerprints."""
    share: float
    """Share of a window's positions that the head runs for."""

    def on(self, windows: Windows) -> Scorer:
        """The same for other windows of the same length, without a teacher."""

    def keep_teacher(self, state: Tensor) -> None:
        """Compare all states to come with this one, [W, T, H], of the full model; it is copied."""

    def score(self, state: Tensor) -> Scores:
        """Mean NLL of each window of a state [W, T, H], and mean KL to the teacher (NaN without one)."""

    def begin(self, state: Tensor) -> Callable[[], Scores]:
        """Begin to score a state [W, T, H], which may change afterwards; the result waits for its scores."""


class GeneralScorer:
    """The model's own head on some windows at a time, losses from its logits."""

    path = "hf"
    share = 1.0

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.slices = windows.slices(HEAD_BYTES // (4 * windows.skeleton.vocab_size))
        self.teacher: Tensor | None = None

    def on(self, windows: Windows) -> GeneralScorer:
        """The same for other windows."""
        return GeneralScorer(windows)

    def keep_teacher(self, state: Tensor) -> None:
        """Keep the teacher's state [W, T, H]; its logits are computed again, some windows at a time."""
        self.teacher = state.clone()

    def score(self, state: Tensor) -> Scores:
        """Mean NLL, and KL where there is a teacher, of each window of a state [W, T, H]."""
        nll = np.empty(self.windows.n_windows)
        kl = np.full(self.windows.n_windows, np.nan)
        for first, last, context in self.slices:
            logits = logits_of(context, state[first:last])
            ids, scored = self.windows.ids[first:last], self.windows.scored
            nll[first:last] = self.windows.means(token_nll(logits, ids)[:, scored].double(), first).cpu().numpy()
            if self.teacher is not None:
                teacher = logits_of(context, self.teacher[first:last])
                kl[first:last] = self.windows.means(token_kl(teacher, logits)[:, scored].double(), first).cpu().numpy()
        return Scores(nll, kl)

    def begin(self, state: Tensor) -> Callable[[], Scores]:
        """Score a state [W, T, H] at once."""
        scores = self.score(state)
        return lambda: scores


class FusedScorer:
    """Head and loss in one, by tiles of the vocabulary: logits of all tokens are never held; scored positions only."""

    path = "fused"

    def __init__(self, windows: Windows, head: FusedHead) -> None:
        self.windows = windows
        self.head = head
        self.share = len(windows.scored) / windows.ids.shape[1]
        self.targets = windows.ids[:, windows.scored + 1].reshape(-1)
        self.teacher: Tensor | None = None
        self.queue = queue_of(windows.skeleton.device)

    def on(self, windows: Windows) -> FusedScorer:
        """The same for other windows; the head is checked already."""
        return FusedScorer(windows, self.head)

    def keep_teacher(self, state: Tensor) -> None:
        """Keep the input of the teacher's head; `state` is [W, T, H]."""
        self.teacher = self._inputs(state)

    def score(self, state: Tensor) -> Scores:
        """Mean NLL, and KL where there is a teacher, of each window of a state [W, T, H]."""
        return self.begin(state)()

    def begin(self, state: Tensor) -> Callable[[], Scores]:
        """Losses of a state [W, T, H] and their means on the model's device, fetched when they are there."""
        with torch.inference_mode():
            losses = self.head.losses(self._inputs(state), self.targets, self.teacher)
            kinds = [losses.nll] if losses.kl is None else [losses.nll, losses.kl]
            by_window = [kind.view(self.windows.n_windows, -1).double() for kind in kinds]
            means = torch.stack([self.windows.means(losses) for losses in by_window])
            fetched = self.queue.fetch(means)

        def scores() -> Scores:
            nll, *kl = fetched().numpy()
            return Scores(nll, kl[0] if kl else np.full(len(nll), np.nan))

        return scores

    def _inputs(self, state: Tensor) -> Tensor:
        """The head's input at the S scored positions, [W · S, H]."""
        context = self.windows.context(1)
        hidden = self.head.inputs(context, _padded(context, state))
        return hidden[: len(state), self.windows.scored].reshape(len(self.targets), -1)


class InOrder:
    """Scores of states that are begun in order and taken in order, some behind, so that no device waits for the host.

    Args:
        scorer: of the game.
        take: called with each number and its scores.
        behind: how many states are begun before the first one's scores are waited for.
    """

    def __init__(self, scorer: Scorer, take: Callable[[int, Scores], None], behind: int = 0) -> None:
        self._scorer = scorer
        self._take = take
        self._behind = behind
        self._begun: deque[tuple[int, Callable[[], Scores]]] = deque()

    def begin(self, number: int, state: Tensor) -> None:
        """Begin to score a state [W, T, H], which may change afterwards."""
        self._begun.append((number, self._scorer.begin(state)))
        self._take_all_but(self._behind)

    def finish(self) -> None:
        """Take what is left."""
        self._take_all_but(0)

    def _take_all_but(self, count: int) -> None:
        while len(self._begun) > count:
            number, scores = self._begun.popleft()
            self._take(number, scores())


def scores_behind(windows: Windows) -> int:
    """How many scores may be on their way where these windows are scored: some on a GPU, none elsewhere."""
    return _BEHIND if windows.skeleton.device.type == "cuda" else 0


def make_scorer(windows: Windows, *, block_path: str = "auto") -> Scorer:
    """The fused scorer where the model's head allows it, unless `block_path` is "hf"."""
    own_norm = windows.skeleton.device.type == "cuda"
    ids = windows.ids[:_CHECK_WINDOWS]
    head = fused_head(windows.skeleton, ids, own_norm=own_norm) if block_path != "hf" else None
    return GeneralScorer(windows) if head is None else FusedScorer(windows, head)


def logits_of(context: Context, state: Tensor) -> Tensor:
    """Logits of some windows of a state, [w, T, V]."""
    return context.logits(_padded(context, state))[: state.shape[0]]


def _padded(context: Context, state: Tensor) -> Tensor:
    """Some windows of a state, padded to the context's batch."""
    missing = context.ids.shape[0] - state.shape[0]
    return torch.cat([state, state[:1].expand(missing, -1, -1)]) if missing else state


def token_nll(logits: Tensor, ids: Tensor) -> Tensor:
    """−log q(next token): logits [B, T, V] (any float dtype), ids int64 [B, T] → fp32 [B, T−1].

    Window by window: the fp32 copy of one window's logits still fits a processor's cache, that of many does not.
    """
    rows = [
        torch.nn.functional.cross_entropy(window[:-1].float(), tokens[1:], reduction="none")
        for window, tokens in zip(logits, ids, strict=True)
    ]
    return torch.stack(rows)


def token_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) after each scored position: logits [B, T, V] both (any float dtype) → fp32 [B, T−1]."""
    rows = []
    for p, q in zip(teacher, student, strict=True):
        log_p, log_q = p[:-1].float().log_softmax(-1), q[:-1].float().log_softmax(-1)
        rows.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.stack(rows)
