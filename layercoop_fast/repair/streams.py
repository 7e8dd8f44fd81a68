"""The residual streams of the full and of the pruned model over many windows, a chunk of windows at a time.

    text = Streams(game, ids, keep=True)
    for inputs, missing, weights in text.tokens(gap, kept, site, patches):
        ...                                             # of one chunk: [N, n], [N, H], [N]

Where the streams are kept, 2 · tokens · H numbers in the model's dtype, each unit is computed once. Otherwise they are
computed again from the embedding for each gap, so that the memory does not grow with the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from layercoop_fast.engine.calls import BlockCall, Returned, replaced_forward
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.players import Players
from layercoop_fast.masked.units import GeneralUnits, Units
from layercoop_fast.masked.windows import Windows
from layercoop_fast.repair.gaps import Gap
from layercoop_fast.repair.patches import Patch, applied

# Tokens of a chunk: enough that products run at full speed, few enough that activations in float64 stay small.
_CHUNK_TOKENS = 4096


class Watched(Protocol):
    """A site, as far as its regression's inputs go."""

    @property
    def module(self) -> nn.Module:
        """What is watched while its unit runs; it is called once."""

    def reads(self, handed: Tensor, returned: Tensor) -> Tensor:
        """The regression's inputs [..., n], of the module's first argument and its output, [..., ·] each."""


@dataclass
class _Chunk:
    """Some windows, `ids` int64 [w, T], and their two streams [w, T, H], each before its unit `*_at`."""

    ids: Tensor
    full: Tensor | None = None
    full_at: int = 0
    pruned: Tensor | None = None
    pruned_at: int = 0


class Streams:
    """The two streams over the windows of one text.

    Args:
        game: its model and players, and the way its units are computed.
        ids: windows, int64 [W, T]; fast blocks run on them where they are as long as the game's.
        keep: whether states are kept from one gap to the next, or computed again.
    """

    def __init__(self, game: ModelGame, ids: Tensor, *, keep: bool) -> None:
        self.game = game
        self.keep = keep
        self._chunks = [_Chunk(some) for some in _cut(ids)]
        self._runner = _Runner(game)

    @torch.inference_mode()
    def tokens(
        self, gap: Gap, kept: Sequence[int], site: Watched, patches: Sequence[Patch]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each chunk the site's inputs [N, n], the missing part of its output [N, H], and weights of tokens [N].

        The missing part is the full model's stream before unit `gap.behind` minus the pruned model's after `gap.unit`,
        computed from the units of `kept` with the patches applied. The weight of a token is the inverse mean square of
        its full stream, since the norm that reads the stream divides by its root: a token of massive activations then
        counts like any other. The gaps of one text must come in ascending order.
        """
        before = [unit for unit in kept if unit < gap.unit]
        for chunk in self._chunks:
            windows, units = self._runner.of(chunk.ids)
            full = self._runner.start(chunk.ids, windows) if chunk.full is None else chunk.full
            for unit in range(chunk.full_at if chunk.full is not None else 0, gap.behind):
                units.run(unit, [full], [full])
            pruned = self._runner.start(chunk.ids, windows) if chunk.pruned is None else chunk.pruned
            done = chunk.pruned_at if chunk.pruned is not None else 0
            with applied(patches):
                for unit in before:
                    if unit >= done:
                        units.run(unit, [pruned], [pruned])
            if self.keep:
                chunk.full, chunk.full_at, chunk.pruned, chunk.pruned_at = full, gap.behind, pruned, gap.unit
            inputs, after = _watched(self.game.masked.players, windows, gap.unit, site, pruned)
            # In a model that is spread over devices, a block's output stays on the block's device.
            there, after = full.to(inputs.device).float(), after.to(inputs.device).float()
            yield inputs.flatten(0, 1), (there - after).flatten(0, 1), _weights(there).flatten()


class FullStreams:
    """The full model's stream over the windows of one text: before a unit, and behind it and each of the next ones.

    Args:
        game: its model and players, and the way its units are computed.
        ids: windows, int64 [W, T].

    Attributes:
        evaluated: unit evaluations times tokens so far.
    """

    def __init__(self, game: ModelGame, ids: Tensor) -> None:
        self.game = game
        self.evaluated = 0
        self._runner = _Runner(game)
        # Of each chunk the streams before the present unit and the next ones, [w, T, H] each.
        self._chunks: list[tuple[Tensor, deque[Tensor]]] = [(some, deque()) for some in _cut(ids)]

    @torch.inference_mode()
    def tokens(self, unit: int, site: Watched, runs: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each chunk the site's inputs [N, n], what each run adds [N, runs·H], and weights of tokens [N].

        A run of g units adds x_{unit+1+g} − x_{unit+1}, x_k being the stream before unit k. Weights are as those of
        `Streams.tokens`, by the stream behind the unit. Units must come in ascending order, `advance` between them.
        """
        for ids, states in self._chunks:
            windows = self._ahead(ids, states, unit, runs + 2)
            inputs, _ = _watched(self.game.masked.players, windows, unit, site, states[0])
            self.evaluated += ids.numel()
            behind = states[1].to(inputs.device).float()
            added = [states[1 + run].to(inputs.device).float() - behind for run in range(1, runs + 1)]
            yield inputs.flatten(0, 1), torch.cat(added, dim=-1).flatten(0, 1), _weights(behind).flatten()

    @torch.inference_mode()
    def across(self, first: int, behind: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each chunk the streams before unit `first`, the present one, and before unit `behind`: [w, T, H] each."""
        for ids, states in self._chunks:
            self._ahead(ids, states, first, behind - first + 1)
            yield states[0], states[behind - first]

    @torch.inference_mode()
    def advance(self, unit: int) -> None:
        """Go on from `unit` to the next one."""
        for ids, states in self._chunks:
            self._ahead(ids, states, unit, 2)
            states.popleft()

    def _ahead(self, ids: Tensor, states: deque[Tensor], unit: int, count: int) -> Windows:
        """Have `count` streams from the one before `unit` on."""
        windows, units = self._runner.of(ids)
        if not states:
            states.append(self._runner.start(ids, windows))
        while len(states) < count:
            last = states[-1].clone()
            units.run(unit + len(states) - 1, [last], [last])
            self.evaluated += ids.numel()
            states.append(last)
        return windows


class _Runner:
    """How a game's units run on windows that are not its own.

    Args:
        game: its model and players, and the way its units are computed.
    """

    def __init__(self, game: ModelGame) -> None:
        self.game = game
        # Contexts of fast blocks depend only on the number of windows and their length.
        self._by_size: dict[int, Windows] = {}

    def of(self, ids: Tensor) -> tuple[Windows, Units]:
        """The windows whose contexts fit `ids` (int64 [w, T]), and the units to run on them."""
        if not is_fast(self.game, ids):
            windows = Windows(self.game.masked.skeleton, ids)
            return windows, GeneralUnits(windows, self.game.masked.players.run)
        windows = self._by_size.setdefault(len(ids), Windows(self.game.masked.skeleton, ids))
        return windows, self.game.masked.units

    def start(self, ids: Tensor, windows: Windows) -> Tensor:
        """What unit 0 receives, [w, T, H], which may be overwritten."""
        if is_fast(self.game, ids):
            return _embedding(self.game.masked.skeleton, ids).clone()
        return windows.context(1).embedding[: len(ids)].clone()


def _cut(ids: Tensor) -> list[Tensor]:
    """Windows [W, T] in chunks of some thousand tokens."""
    step = max(1, _CHUNK_TOKENS // ids.shape[1])
    return [ids[first : first + step] for first in range(0, len(ids), step)]


def _weights(stream: Tensor) -> Tensor:
    """The inverse mean square of each token of a stream, [w, T, H] to [w, T]."""
    return stream.square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny).reciprocal()


def _watched(players: Players, windows: Windows, unit: int, site: Watched, state: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of the site's regression while the unit runs on a state [w, T, H], and the unit's output [w, T, H]."""
    context = windows.context(1)
    missing = len(context.ids) - len(state)
    batch = torch.cat([state, state[:1].expand(missing, -1, -1)]) if missing else state.clone()
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], returned: Tensor) -> None:
        seen.append(site.reads(args[0], returned))

    handle = site.module.register_forward_hook(note)
    try:
        after = players.run(context, unit, batch)
    finally:
        handle.remove()
    # OPT's MLP gets all tokens flattened into [w · T, H].
    inputs = seen[0].reshape(*batch.shape[:2], -1)
    return inputs[: len(state)], after[: len(state)]


def is_fast(game: ModelGame, ids: Tensor) -> bool:
    """Whether a game's fast blocks can run on the windows `ids` (int64 [W, T]).

    They take any plain windows as long as the game's own, if those are plain windows too (not items with options).
    """
    own = game.masked.windows
    return game.masked.units.path == "fast" and own.positions is None and own.ids.shape[1] == ids.shape[1]


class _Reached(Exception):
    """Carries what block 0 receives, [B, T, H]; raised so that nothing after it is computed."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _embedding(skeleton: Skeleton, ids: Tensor) -> Tensor:
    """What block 0 receives for a batch of windows, [B, T, H]."""
    takes = skeleton.convention.takes

    def stop(_: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Returned:
            raise _Reached(BlockCall(args, kwargs).hidden(takes))

        return forward

    with replaced_forward(skeleton.blocks, stop):
        try:
            skeleton.model(input_ids=ids, use_cache=False)
        except _Reached as reached:
            return reached.hidden
    raise AssertionError("a model's forward pass ran without its blocks")
