"""Sequences of one call that have equal states until their masks differ.

The state after block l depends only on the tokens so far and on the kept blocks up to l. So of several sequences with
the same tokens, only one runs the first blocks, on which their masks agree; the others take its state at the first
block where they differ. This is a trie of prefixes of masks, like the plan of masked passes (`masked/plan.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from layercoop_fast.runtime.sequences import TokenSequence, common_blocks


def find_parents(sequences: Sequence[TokenSequence], tokens: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """For each sequence the number of its parent, whose state it takes, and the block where it does (the fork).

    (-1, 0) means no parent. `tokens` are the new tokens of each sequence. A parent comes earlier in the list and, where
    it has a parent itself, an earlier fork; a fork of L means that both are equal in all blocks.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    parents = []
    for number, (sequence, new) in enumerate(zip(sequences, tokens, strict=True)):
        alike = groups.setdefault((sequence.length, tuple(new)), [])
        best, fork = -1, 0
        for other in alike:
            common = common_blocks(sequence.mask, sequences[other].mask)
            # The earliest of those that share most, whose own fork is before that block.
            if common > fork and sequences[other].tokens == sequence.tokens:
                best, fork = other, common
            if fork == len(sequence.mask):
                break
        parents.append((best, fork))
        alike.append(number)
    return parents
