"""An executor without a model: pages hold what was written there, and every read is checked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.runtime.executor import Executor, Rows
from layercoop_fast.runtime.pages import PAGE, PagePool
from layercoop_fast.runtime.sequences import TokenSequence

PAGE_BYTES = 10


class FakeExecutor(Executor):
    """Its "keys" are (token, position, kept blocks up to there); its likeliest next word is a sum over the history."""

    name = "fake"
    weight_bytes = 0

    def __init__(self, n_layers: int = 3, pages: int = 1000, max_tokens: int | None = None) -> None:
        super().__init__(PagePool([PAGE_BYTES] * n_layers, pages * PAGE_BYTES), 50, max_tokens)
        self.memory: dict[tuple[int, int], object] = {}  # (page, slot) -> what was written
        self.fails = False
        self.copies = 0

    def copy_page(self, layer: int, source: int, target: int) -> None:
        self.copies += 1
        for slot in range(PAGE):
            self.memory[target, slot] = self.memory.get((source, slot))

    def logits(self, rows: Rows) -> Tensor:
        if self.fails:
            raise MemoryError("on purpose")
        history = {s: list(sequence.tokens) for s, sequence in enumerate(rows.sequences)}
        for token, s in zip(rows.tokens.tolist(), rows.sequence.tolist(), strict=True):
            history[s].append(token)
        for layer in range(self.n_layers):
            for r, s in enumerate(rows.sequence.tolist()):
                position = int(rows.positions[r])
                if rows.fork[r] <= layer and rows.masks[s, layer] & 1:
                    place = int(rows.tables[s, layer, position // PAGE]), position % PAGE
                    assert place[0] >= 0
                    self.memory[place] = self._key(rows, s, layer, history[s][position], position)
            for r, s in enumerate(rows.sequence.tolist()):
                if rows.masks[s, layer] & 1:
                    for position in range(int(rows.positions[r]) + 1):
                        place = int(rows.tables[s, layer, position // PAGE]), position % PAGE
                        assert self.memory[place] == self._key(rows, s, layer, history[s][position], position)
        out = torch.zeros(len(rows.wanted), self.vocab_size)
        for k, r in enumerate(rows.wanted.tolist()):
            s = int(rows.sequence[r])
            out[k, next_word(rows.masks[s], history[s][: int(rows.positions[r]) + 1])] = 1
        return out

    @staticmethod
    def _key(rows: Rows, s: int, layer: int, token: int, position: int) -> object:
        # Behind a draft lie the keys of the sequence's own mask.
        sequence = rows.sequences[s]
        verified = rows.lengths[s] if sequence.drafted is None else sequence.drafted
        mask = sequence.mask if position < verified else rows.masks[s]
        return token, position, layer, mask[: layer + 1].tobytes()


def next_word(mask: np.ndarray, tokens: list[int]) -> int:
    """What the fake model says after `tokens`."""
    return (7 * sum(tokens) + 3 * len(tokens) + int(np.packbits(mask > 0).sum())) % 50


def check_references(executor: Executor, holders: list[TokenSequence], further: int = 0) -> None:
    """Every page is held by exactly those who have it in their tables (and `further` pages by somebody else)."""
    count: dict[tuple[int, int], int] = {}
    for sequence in holders:
        for layer in range(executor.n_layers):
            held = sequence.tables[layer][sequence.tables[layer] >= 0]
            expected = sequence.n_pages if layer in sequence.layers else 0
            assert len(held) == expected
            for page in held.tolist():
                kind = int(executor.pool.kinds[layer])
                count[kind, page] = count.get((kind, page), 0) + 1
    assert executor.pool.used == len(count) + further
    for (kind, page), references in count.items():
        layer = int(np.flatnonzero(executor.pool.kinds == kind)[0])
        found = executor.pool.references(np.array([layer]), np.array([page], dtype=np.int32))[0]
        assert found == references or further
