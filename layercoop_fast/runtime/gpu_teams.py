"""Which tokens of a step begin in the same pages: attention reads these once for a team of them.

One prompt under many masks, several answers to one prompt, requests behind one system prompt and the proposals of a
draft share pages, in each block as far as their masks agree. A team has up to `TEAM` tokens, and shares what all of
them have in common with its first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercoop_fast.runtime.executor import Ints
from layercoop_fast.runtime.pages import PAGE

TEAM = 8
"""Members of a team at most: with four heads to a key head their queries fill two tiles of matrix units."""


@dataclass(frozen=True)
class StepTeams:
    """The teams of a step of R tokens in L blocks.

    Attributes:
        members: int32 [L, T, TEAM], numbers of tokens, −1 behind the last of a team.
        shared: int32 [L, R], how many first tokens of its context a token shares with its team.
        saved: tokens of contexts that need not be read, mean over the blocks.
    """

    members: Ints
    shared: Ints
    saved: float


def find_teams(tables: Ints, positions: Ints) -> StepTeams | None:
    """The teams of tokens at `positions`, int32 [R], by the pages of their contexts, int32 [R, L, M]; None without any.

    Pages are −1 where there is none. A token sees its own position.
    """
    count, layers, _ = tables.shape
    first = tables[:, :, 0]
    alike = (first[:, None] == first[None]) & (first >= 0)[None]  # [R, R, L]
    if alike.sum() == (first >= 0).sum():
        return None
    before = (alike & np.tri(count, k=-1, dtype=np.bool_).T[:, :, None]).sum(0)  # of each token, how many come first
    rank, at = before % TEAM, np.arange(layers)[None]
    leads = alike & (before[:, None] == (before - rank)[None])
    leader = np.where(first >= 0, leads.argmax(0), np.arange(count)[:, None])  # [R, L]
    equal = tables == tables[leader, at]
    pages = np.where(equal.all(2), tables.shape[2], equal.argmin(2))
    tokens = np.minimum(pages * PAGE, positions[:, None] + 1)
    least = np.full((count, layers), np.iinfo(np.int32).max)
    np.minimum.at(least, (leader, at), tokens)
    size = np.zeros((count, layers), dtype=np.int64)
    np.add.at(size, (leader, at), first >= 0)
    real = size > 1
    shared = np.where((first >= 0) & real[leader, at], least[leader, at], 0)
    number = np.cumsum(real, axis=0) - 1  # of each leader's team in its block
    members = np.full((layers, int(real.sum(0).max()), TEAM), -1, dtype=np.int32)
    token, layer = np.nonzero(shared)
    members[layer, number[leader[token, layer], layer], rank[token, layer]] = token
    saved = float((shared.sum() - np.where(real, least, 0).sum()) / layers)
    return StepTeams(members, shared.T.astype(np.int32), saved)
