"""Which rows of one call are the same until their masks differ.

A state after block l is a function of the tokens so far and of the blocks kept up to l. So of several sequences with
one history and the same new tokens, only one runs the blocks that their masks agree on; the others take its state over
at the first block where they differ. That is a trie of kept prefixes, as the engine's plan is.
"""

from __future__ import annotations

from collections.abc import Sequence as Several

from layercoop_fast.runtime.sequences import Sequence, common_blocks


def find_parents(sequences: Several[Sequence], tokens: Several[Several[int]]) -> list[tuple[int, int]]:
    """For each sequence, whose state it takes over and at which block: (-1, 0) for its own from the embedding on.

    `tokens` are the new tokens of each. A parent stands earlier in the list and, where it has a parent itself, took its
    state over at an earlier block; a fork of L says that the two are the same throughout.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    parents = []
    for number, (sequence, new) in enumerate(zip(sequences, tokens, strict=True)):
        alike = groups.setdefault((sequence.length, tuple(new)), [])
        best, fork = -1, 0
        for other in alike:
            common = common_blocks(sequence.mask, sequences[other].mask)
            # The earliest of those that share most: it has taken its own state over before that block.
            if common > fork and sequences[other].tokens == sequence.tokens:
                best, fork = other, common
            if fork == len(sequence.mask):
                break
        parents.append((best, fork))
        alike.append(number)
    return parents
