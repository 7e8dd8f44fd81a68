"""From a mask's last state to the NLL of every token of every option, by the model's own head or head and loss in one.

The head runs for the rows alone after which a token is scored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.rows import MIN_ROWS
from layercoop_fast.llama.fused_head import FusedHead, fused_head
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masked.scoring import HEAD_BYTES
from layercoop_fast.masked.windows import Windows
from layercoop_fast.texts.token_tree import Packs

# Tokens of the text on which the fused head is compared with the model's own.
_CHECK_TOKENS = 64


class ItemScorer:
    """NLL of every scored token of a game's items.

    Args:
        windows: of the game.
        packs: what is scored in them.
        head: the fused head, or None for the model's own.
    """

    def __init__(self, windows: Windows, packs: Packs, head: FusedHead | None) -> None:
        self.windows = windows
        self.packs = packs
        self.head = head
        self.path = "hf" if head is None else "fused"
        self.share = len(packs.rows) / packs.ids.numel()
        # What comes behind the blocks looks at one row at a time: rows go through it as texts of one token each.
        self.context = windows.skeleton.context(windows.ids[:1, :1])

    def on(self, windows: Windows) -> ItemScorer:
        """The same scorer again; `windows` are its own."""
        return ItemScorer(windows, self.packs, self.head)

    def keep_teacher(self, state: Tensor) -> None:
        """Raises `RequestError` for any state [W, T, H]: items have no teacher."""
        raise RequestError("the divergence from the full model is a utility of texts, not of items with options")

    def score(self, state: Tensor) -> Scores:
        """NLL of each of the N scored tokens of a state [W, T, H], in the order of the items; no KL."""
        with torch.inference_mode():
            hidden = state.reshape(-1, state.shape[-1])[self.packs.rows]
            missing = max(MIN_ROWS - len(hidden), 0)
            hidden = torch.cat([hidden, hidden[:1].expand(missing, -1)])[:, None]
            targets = torch.cat([self.packs.targets, self.packs.targets[:1].expand(missing)])
            nll = self._general(hidden, targets) if self.head is None else self._fused(self.head, hidden, targets)
            tokens = nll[self.packs.of_token].double().cpu().numpy()
        return Scores(tokens, np.full(len(tokens), np.nan))

    def begin(self, state: Tensor) -> Callable[[], Scores]:
        """Score a state [W, T, H] at once."""
        scores = self.score(state)
        return lambda: scores

    def _fused(self, head: FusedHead, hidden: Tensor, targets: Tensor) -> Tensor:
        return head.losses(head.inputs(self.context, hidden)[:, 0].contiguous(), targets).nll

    def _general(self, hidden: Tensor, targets: Tensor) -> Tensor:
        step = max(MIN_ROWS, HEAD_BYTES // (4 * self.windows.skeleton.vocab_size))
        nll = []
        for first in range(0, len(targets), step):
            # The last few come with some before them: a handful of rows is multiplied in another way.
            begin = max(0, min(first, len(targets) - MIN_ROWS))
            logits = self.context.logits(hidden[begin : first + step])[:, 0].float()
            losses = torch.nn.functional.cross_entropy(logits, targets[begin : first + step], reduction="none")
            nll.append(losses[first - begin :])
        return torch.cat(nll)


def make_item_scorer(windows: Windows, packs: Packs, *, block_path: str = "auto") -> ItemScorer:
    """A scorer with the fused head where the model's allows it, unless `block_path` is "hf"."""
    ids = windows.ids[:1, : min(_CHECK_TOKENS, windows.skeleton.max_tokens or _CHECK_TOKENS)]
    head = fused_head(windows.skeleton, ids) if block_path != "hf" else None
    return ItemScorer(windows, packs, head)
