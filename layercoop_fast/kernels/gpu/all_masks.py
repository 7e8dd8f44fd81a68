"""The sums over all masks of a game of networks that `shapley/enumeration.py` needs, on a GPU.

The masks of up to 28 players are one launch of `enumeration.py`. Every combination of further players is a launch with
another bias, so a step of `run` is 2²⁸ masks. Results of launches are added up in float64 by the number of further
players kept, and turned into sums by player and by pair when these are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import comb

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.enumeration import CONFIGS, Found, Tables, launch_enumerate, launch_scores
from layercoop_fast.kernels.gpu.frame import Config
from layercoop_fast.kernels.gpu.surrogate import DeviceNetworks
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.masks.types import Floats

MOST_PLAYERS = 44
# Blocks of high halves that one program sums, in fp32.
CHUNK = 8


class _Halves:
    """The subsets of some players in order of size, padded so that blocks hold one size.

    Attributes:
        kept: float64 [halves, players], 1 where the half keeps the player; rows of padding have sums of 0 anyway.
        spans: of each size the places of its halves.
    """

    def __init__(self, players: int, block: int, device: torch.device) -> None:
        codes = np.arange(1 << players)
        sizes = np.array([int(code).bit_count() for code in codes])
        parts: list[npt.NDArray[np.int64]] = []
        of_blocks: list[int] = []
        self.spans: list[slice] = []
        for size in range(players + 1):
            some = codes[sizes == size]
            count = -(-len(some) // block)
            parts.append(np.concatenate([some, np.full(count * block - len(some), -1)]))
            first = len(of_blocks) * block
            self.spans.append(slice(first, first + count * block))
            of_blocks += [size] * count
        code = np.concatenate(parts).astype(np.int32)
        self.players = players
        self.code = torch.from_numpy(code).to(device)
        self.block_size = torch.tensor(of_blocks, dtype=torch.int32, device=device)
        self.size = self.block_size.long().repeat_interleave(block)
        kept = (self.code.clamp_min(0)[:, None] >> torch.arange(max(players, 1), device=device)) & 1
        self.kept = kept[:, :players].double()


class AllMasks:
    """As `_C.Enumeration`, on a device and without costs: the same properties have the same meaning.

    For the `top` best masks of each size as many tiles are computed again, 16 KiB each. Raises `RequestError` for more
    than 44 players.
    """

    def __init__(
        self,
        networks: Networks,
        shifts: Floats,
        *,
        device: torch.device | str,
        pairs: bool = False,
        top: int = 0,
        halves: tuple[int, int] = (14, 14),
        config: Config | None = None,
    ) -> None:
        n = networks.n_players
        if n > MOST_PLAYERS:
            raise RequestError(f"{n} players have too many masks to go through: at most {MOST_PLAYERS} on a GPU")
        self._device = torch.device(device)
        there = DeviceNetworks.of(networks, self._device)
        n_low = min(halves[0], max((n + 1) // 2, n - halves[1]))
        n_high = min(halves[1], n - n_low)
        self._n, self._inner, self._top_players = n, n_low + n_high, n - n_low - n_high
        self._config = config or CONFIGS["large"]
        self._low = _Halves(n_low, self._config.blocks["LOW"], self._device)
        self._high = _Halves(n_high, self._config.blocks["HIGH"], self._device)
        self._tables = _tables(there, self._low, self._high)
        self._further = there.hidden_weight[:, :, self._inner :].flatten(0, 1).double()
        self._base = self._tables.high
        self._shifts = torch.tensor(shifts, dtype=torch.float32, device=self._device)
        self._with_pairs, self._wanted = pairs, top
        self._done: list[int] = []

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self._device)

        kinds = self._top_players + 1
        self._by_low = zeros(kinds, n_high + 1, len(self._low.code))
        self._by_high = zeros(kinds, n_low + 1, len(self._high.code))
        self._by_pair = zeros(kinds, n_high + 1, n_high, len(self._low.code)) if pairs else None
        self._squares = zeros(n + 1)
        self._sizes_of: list[Tensor] = []
        self._players_of: list[Tensor] = []
        self._best_scores = torch.full((n + 1, max(top, 1)), -torch.inf, device=self._device)
        self._best_codes = torch.zeros((n + 1, max(top, 1)), dtype=torch.int64, device=self._device)

    @property
    def n_tasks(self) -> int:
        """Number of launches in all."""
        return 1 << self._top_players

    @property
    def n_done(self) -> int:
        """Number of launches that are done."""
        return len(self._done)

    def run(self, count: int) -> None:
        """Run the next `count` launches, or as many as are left, and wait for them."""
        for code in range(self.n_done, min(self.n_done + count, self.n_tasks)):
            self._take(code)
            self._done.append(code)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _take(self, code: int) -> None:
        size = code.bit_count()
        kept = torch.tensor([code >> i & 1 for i in range(self._top_players)], dtype=torch.float64, device=self._device)
        high = self._base + (self._further @ kept).float()[:, None]
        tables = replace(
            self._tables,
            high=high,
            high_power=None if self._tables.high_power is None else high.exp(),
            shift=self._shifts[size : size + self._inner + 1],
        )
        found = launch_enumerate(
            tables,
            high_players=self._high.players,
            top=self._wanted > 0,
            pairs=self._with_pairs and self._high.players > 0,
            config=self._config,
        )
        self._add(found, size)
        if found.peaks is not None:
            self._look_for_best(tables, found.peaks, code, size)

    def _add(self, found: Found, size: int) -> None:
        chunk_size = self._tables.high_size.long()
        low = torch.zeros_like(self._by_low[0]).index_add_(0, chunk_size, found.low_sums.double())
        high = torch.zeros_like(self._by_high[0]).index_add_(0, self._low.block_size.long(), found.high_sums.double())
        self._by_low[size] += low
        self._by_high[size] += high
        if self._by_pair is not None and found.pair_sums is not None:
            self._by_pair[size].index_add_(0, chunk_size, found.pair_sums.double())
        place = size + chunk_size[:, None] + self._low.block_size.long()[None, :]
        self._squares.index_add_(0, place.flatten(), found.squares.double().flatten())
        if self._top_players:
            self._sizes_of.append(self._inner_sizes(low))
            if self._with_pairs:
                self._players_of.append(self._inner_players(low, high))

    def _inner_sizes(self, low: Tensor) -> Tensor:
        """Sums by size of the inner players, [inner + 1], of sums [high sizes, low halves]."""
        place = torch.arange(len(low), device=self._device)[:, None] + self._low.size[None, :]
        return low.new_zeros(self._inner + 1).index_add_(0, place.flatten(), low.flatten())

    def _inner_players(self, low: Tensor, high: Tensor) -> Tensor:
        """Sums by inner player and size, [inner, inner + 1]."""
        found = low.new_zeros(self._inner, self._inner + 1)
        for sums, halves, start in ((low, self._low, 0), (high, self._high, self._low.players)):
            some = found[start : start + halves.players]
            for other in range(len(sums)):
                by_player = halves.kept * sums[other][:, None]
                some.index_add_(1, halves.size + other, by_player.T.contiguous())
        return found

    def _look_for_best(self, tables: Tables, peaks: Tensor, code: int, size: int) -> None:
        """Replace the best masks by those of tiles whose peak is above the worst of them."""
        tile_size = self._high.block_size.long()[:, None] + self._low.block_size.long()[None, :]
        above = (peaks > self._best_scores[:, -1][tile_size + size]).nonzero()
        if len(above) == 0:
            return
        of_size = tile_size[above[:, 0], above[:, 1]]
        for inner in sorted(set(of_size.tolist())):
            tiles = above[of_size == inner]
            if len(tiles) > self._wanted:
                tiles = tiles[peaks[tiles[:, 0], tiles[:, 1]].topk(self._wanted).indices]
            high, low = tiles.int().unbind(1)
            scores = launch_scores(tables, high.contiguous(), low.contiguous(), config=self._config).flatten(1)
            codes = self._codes(tiles, code)
            self._merge(size + inner, scores.flatten(), codes.flatten())

    def _codes(self, tiles: Tensor, code: int) -> Tensor:
        blocks = self._config.blocks
        high = self._high.code.view(-1, blocks["HIGH"])[tiles[:, 0]].long()
        low = self._low.code.view(-1, blocks["LOW"])[tiles[:, 1]].long()
        joint = (high[:, :, None] << self._low.players) | low[:, None, :]
        return joint.flatten(1) | (code << self._inner)

    def _merge(self, size: int, scores: Tensor, codes: Tensor) -> None:
        scores = torch.cat([self._best_scores[size], scores])
        codes = torch.cat([self._best_codes[size], codes])
        best = scores.topk(self._wanted)
        self._best_scores[size], self._best_codes[size] = best.values, codes[best.indices]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Masks of each size seen so far, int64[n + 1]."""
        found = np.zeros(self._n + 1, dtype=np.int64)
        for code in self._done:
            size = code.bit_count()
            found[size : size + self._inner + 1] += [comb(self._inner, k) for k in range(self._inner + 1)]
        return found

    @property
    def sizes(self) -> Floats:
        """Sums by size, float64[n + 1]."""
        total = self._by_low.new_zeros(self._n + 1)
        for size, low in enumerate(self._by_low):
            total[size : size + self._inner + 1] += self._inner_sizes(low)
        return _array(total)

    @property
    def squares(self) -> Floats:
        """Sums of squares by size, float64[n + 1]."""
        return _array(self._squares)

    @property
    def players(self) -> Floats:
        """Sums over the masks with player i by size, float64[n, n + 1]."""
        total = self._by_low.new_zeros(self._n, self._n + 1)
        for size, (low, high) in enumerate(zip(self._by_low, self._by_high, strict=True)):
            total[: self._inner, size : size + self._inner + 1] += self._inner_players(low, high)
        self._of_further(lambda i, code, at: total[self._inner + i, at].add_(self._sizes_of[code]))
        return _array(total)

    @property
    def pairs(self) -> Floats | None:
        """Sums over the masks with players i and j by size, float64[n, n, n + 1]; None unless asked for."""
        if not self._with_pairs:
            return None
        n, inner, n_low = self._n, self._inner, self._low.players
        by_size = self._by_low.new_zeros(n + 1, n, n)
        low, high = slice(0, n_low), slice(n_low, inner)
        for sums, halves, own in ((self._by_low, self._low, low), (self._by_high, self._high, high)):
            for k, span in enumerate(halves.spans):
                kept = halves.kept[span]
                both = (kept[:, :, None] * kept[:, None, :]).flatten(1)
                found = (sums[:, :, span] @ both).view(*sums.shape[:2], halves.players, halves.players)
                _add_sizes(by_size[:, own, own], found, k)
        if self._by_pair is not None:
            for k, span in enumerate(self._low.spans):
                found = self._by_pair[:, :, :, span] @ self._low.kept[span]
                _add_sizes(by_size[:, high, low], found, k)
                _add_sizes(by_size[:, low, high], found.transpose(2, 3), k)
        total = by_size.permute(1, 2, 0).contiguous()

        def add(i: int, code: int, at: slice) -> None:
            mine = inner + i
            total[mine, :inner, at] += self._players_of[code]
            total[:inner, mine, at] += self._players_of[code]
            for j in range(self._top_players):
                if code >> j & 1:
                    total[mine, inner + j, at] += self._sizes_of[code]

        self._of_further(add)
        return _array(total)

    def _of_further(self, add: Callable[[int, int, slice], object]) -> None:
        """Call `add` for every further player and every launch that keeps it, with the sizes of the launch."""
        for code in self._done:
            at = slice(code.bit_count(), code.bit_count() + self._inner + 1)
            for i in range(self._top_players):
                if code >> i & 1:
                    add(i, code, at)

    def best(self, size: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
        """The best masks of a size, best first, uint64 [T] (bit i: player i), and their sums of logits float32 [T]."""
        there = self._best_scores[size] > -torch.inf
        codes = self._best_codes[size][there].cpu().numpy().astype(np.uint64)
        return codes, self._best_scores[size][there].cpu().numpy()

    @property
    def affordable(self) -> None:
        """None: costs are supported on the CPU alone."""
        return None


def _add_sizes(total: Tensor, found: Tensor, size: int) -> None:
    """Add sums [F, H, p, q] of masks that keep f further players, h of one half and `size` of the other, by f + h +
    size: to total [sizes, p, q]."""
    for further, of_half in enumerate(found):
        total[further + size : further + size + len(of_half)] += of_half


def _tables(networks: DeviceNetworks, low: _Halves, high: _Halves) -> Tables:
    # In float64: a process may let products of float32 be rounded to the 11 bits of TF32.
    weight = networks.hidden_weight.flatten(0, 1).double()
    split = low.players + high.players
    low_sums = (weight[:, : low.players] @ low.kept.T).float()
    high_sums = (weight[:, low.players : split] @ high.kept.T + networks.hidden_bias.flatten()[:, None]).float()
    first, count, sizes = [], [], []
    for size in range(high.players + 1):
        of_size = (high.block_size == size).nonzero().flatten().tolist()
        for start in range(0, len(of_size), CHUNK):
            first.append(of_size[start])
            count.append(len(of_size[start : start + CHUNK]))
            sizes.append(size)
    chunks = [torch.tensor(each, dtype=torch.int32, device=weight.device) for each in (first, count, sizes)]
    return Tables(
        low=low_sums,
        high=high_sums,
        low_power=low_sums.exp() if networks.factored else None,
        high_power=high_sums.exp() if networks.factored else None,
        weight=networks.output_weight.flatten(),
        bias=networks.output_bias,
        shift=networks.output_bias,
        low_code=low.code,
        high_code=high.code,
        low_size=low.block_size,
        first=chunks[0],
        count=chunks[1],
        high_size=chunks[2],
        activation=networks.activation,
        sigmoid=networks.sigmoid,
    )


def _array(tensor: Tensor) -> Floats:
    found: Floats = tensor.cpu().numpy()
    return found
