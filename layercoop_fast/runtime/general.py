"""Any model whose blocks form a chain, run by transformers' own blocks: the general executor.

Rows that stand at one length with as many new tokens make a batch. The model's own forward is entered once for each set
of rows that a block runs for, to see what it hands its blocks, and left again before its head; the blocks then run
one after the other, each once for the rows that keep it. Blocks that carry a recurrent state run sequence by sequence.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from layercoop_fast.engine.calls import BlockCall, Returned, replaced_forward
from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import WHOLE, Halves
from layercoop_fast.runtime.caches import CacheKinds, StateListKinds
from layercoop_fast.runtime.executor import Executor, Rows
from layercoop_fast.runtime.storage import PageShape, PageStorage

_CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
_PROBE_TOKENS = 3


class _LeftError(Exception):
    """The model's forward is left on purpose: all its blocks have been handed their arguments."""


class CachedContext(Context):
    """What every block is handed for new tokens `ids` int64 [B, T] behind a cache; no block and no head is computed."""

    def __init__(self, skeleton: Skeleton, ids: Tensor, cache: Cache | list[Tensor] | None, cache_name: str) -> None:
        self.skeleton = skeleton
        self.ids = ids
        self._arguments = {}
        convention = skeleton.convention
        captured: dict[int, BlockCall] = {}

        def recorder(index: int) -> Callable[..., Returned]:
            def record(*args: Any, **kwargs: Any) -> Returned:
                call = BlockCall(args, kwargs)
                captured[index] = call
                if index == skeleton.n_layers - 1:
                    raise _LeftError
                return convention.wrap(call.hidden(convention.takes))

            return record

        with torch.inference_mode(), replaced_forward(skeleton.blocks, recorder), suppress(_LeftError):
            skeleton.model(input_ids=ids, use_cache=True, **{cache_name: cache})
        self.embedding = captured[0].hidden(convention.takes)
        if skeleton.embedding_norm is not None:
            with torch.inference_mode():
                self.embedding = skeleton.embedding_norm(self.embedding)
        if cache_name == "state":
            # Handed from block to block, which those that stood aside did not do.
            states = captured[0].kwargs["state"]
            captured = {at: BlockCall(call.args, {**call.kwargs, "state": states}) for at, call in captured.items()}
        self._calls = [captured[index].with_hidden(convention.takes, None) for index in range(skeleton.n_layers)]


class GeneralExecutor(Executor):
    """Runs chunks through transformers' own blocks.

    Args:
        skeleton: the model.
        kv_budget: bytes for keys and values.
        held: uint8 [L], the halves of blocks whose weights are there; by default all.
        sublayers: how blocks fall into halves; by default that is found out when a mask asks for it.

    Raises `RequestError` for a model whose forward takes no cache, and for a budget that holds nothing.
    """

    name = "transformers"

    def __init__(
        self, skeleton: Skeleton, kv_budget: int, held: Halves | None = None, sublayers: Sublayers | None = None
    ) -> None:
        self.skeleton = skeleton
        self._cache_name = _cache_name(skeleton)
        self.kinds = self._kinds()
        self._sublayers = sublayers
        held = np.full(skeleton.n_layers, WHOLE, dtype=np.uint8) if held is None else held
        self.storage = PageStorage(self._shapes(held), kv_budget, skeleton.device)
        paged = all(map(self.kinds.is_paged, range(skeleton.n_layers)))
        super().__init__(self.storage.pool, skeleton.vocab_size, skeleton.max_tokens, held=held, rewindable=paged)
        own = {parameter.data_ptr(): parameter for parameter in skeleton.model.parameters() if not parameter.is_meta}
        self.weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in own.values())

    @property
    def threads(self) -> int:
        """Threads that compute a call: those of torch, none on a GPU."""
        return super().threads if self.skeleton.device.type == "cpu" else 0

    def copy_page(self, layer: int, source: int, target: int) -> None:
        """Copy a page of a block, whole."""
        self.storage.copy_page(layer, source, target)

    def logits(self, rows: Rows) -> Tensor:
        """Compute the rows, those of one length and as many new tokens together: float32 [K, V]."""
        found = torch.empty(len(rows.wanted), self.vocab_size, dtype=torch.float32, device=self.skeleton.device)
        starts = np.flatnonzero(np.diff(rows.sequence, prepend=-1))
        sizes = np.diff(np.append(starts, len(rows.tokens)))
        groups: dict[tuple[int, int], list[int]] = {}
        for number, size in enumerate(sizes.tolist()):
            groups.setdefault((int(rows.lengths[number]), size), []).append(number)
        for (length, size), members in groups.items():
            # transformers' recurrent blocks take one token, or a text from its start: what Mamba makes of several
            # tokens behind a state is off by 2e-3.
            step = 1 if length and not self.rewindable else size
            with torch.inference_mode():
                for at in range(0, size, step):
                    batch = _Batch(self, rows, members, starts[members] + at, length + at, step)
                    batch.score(batch.run(), found)
        return found

    def context(self, ids: Tensor, cache: Cache | list[Tensor] | None) -> CachedContext:
        """What the blocks are handed for new tokens `ids` int64 [B, T] after those of this cache."""
        return CachedContext(self.skeleton, ids, cache, self._cache_name)

    def run_block(self, context: Context, layer: int, halves: int, hidden: Tensor) -> Tensor:
        """A block, or the half of it that a mask keeps: [B, T, H] → [B, T, H]."""
        if halves == WHOLE:
            return context.run(layer, hidden)
        if self._sublayers is None:
            if self.held is not None and not self.held.all():
                raise RequestError(
                    "halves of blocks can be left out where the whole model was opened, or was opened under such a mask"
                )
            self._sublayers = Sublayers(self.skeleton)
        return self._sublayers.run(context, 2 * layer + halves - 1, hidden)

    def _kinds(self) -> CacheKinds | StateListKinds:
        if self._cache_name != "state":
            return CacheKinds(self.skeleton.model, self.skeleton.n_layers)
        # Without one, the model makes the list that a sequence begins with.
        ids = torch.zeros(1, 1, dtype=torch.int64, device=self.skeleton.device)
        states = dict(self.context(ids, None).call(0).arguments()).get("state")
        if not isinstance(states, list) or not all(isinstance(state, Tensor) for state in states):
            raise RequestError(f"{type(self.skeleton.model).__name__} hands its blocks no state: it cannot generate")
        return StateListKinds(states)

    def _shapes(self, held: Halves) -> list[PageShape | None]:
        """What each block keeps of a token, seen on a few tokens."""
        skeleton = self.skeleton
        cache = self.kinds.empty()
        ids = torch.arange(_PROBE_TOKENS, device=skeleton.device)[None] % skeleton.vocab_size
        context = self.context(ids, cache)
        shapes: list[PageShape | None] = []
        hidden = context.embedding
        for layer in range(skeleton.n_layers):
            shapes.append(None)
            if not held[layer] & 1:
                continue
            hidden = self.run_block(context, layer, int(held[layer]), hidden)
            if isinstance(cache, Cache) and self.kinds.is_paged(layer):
                seen = cache.layers[layer]
                if not isinstance(seen.keys, Tensor) or seen.keys.shape[2] != _PROBE_TOKENS:
                    raise RequestError(
                        f"block {layer} of {type(skeleton.model).__name__} left no keys and values in the cache it was "
                        "handed: this model cannot generate under a mask"
                    )
                keys, values = ((int(each.shape[1]), int(each.shape[3])) for each in (seen.keys, seen.values))
                shapes[-1] = PageShape(keys, values, seen.keys.dtype)
        return shapes


class _Batch:
    """Sequences that stand at one length and get as many new tokens, in one call."""

    def __init__(
        self, executor: GeneralExecutor, rows: Rows, members: Sequence[int], starts: Any, length: int, size: int
    ) -> None:
        self.executor, self.rows, self.members, self.length = executor, rows, members, length
        self.starts = starts
        device = executor.skeleton.device
        tokens = np.stack([rows.tokens[start : start + size] for start in starts])
        self.ids = torch.from_numpy(tokens).to(device, torch.int64)
        self.tables = torch.from_numpy(rows.tables[members]).to(device, torch.int64)
        self.masks = rows.masks[members]
        self.forks = rows.fork[starts]
        # Rows of one history: a parent is in the same batch.
        parents = rows.parent[starts].tolist()
        self.parents = [starts.tolist().index(parent) if parent >= 0 else -1 for parent in parents]
        self.cache = executor.kinds.cache(executor.storage, length)
        self._contexts: dict[bytes, CachedContext] = {}

    def run(self) -> Tensor:
        """The states [B, T, H] after the last block."""
        hidden = self._context(list(range(len(self.members)))).embedding.clone()
        for layer in range(self.executor.n_layers):
            for at in np.flatnonzero(self.forks == layer).tolist():
                if self.parents[at] >= 0:
                    hidden[at] = hidden[self.parents[at]]
            running = (self.forks <= layer) & (self.masks[:, layer] > 0)
            for halves in np.unique(self.masks[running, layer]).tolist():
                active = np.flatnonzero(running & (self.masks[:, layer] == halves)).tolist()
                hidden[active] = self._block(layer, halves, active, hidden[active])
            self._inherit(layer)
        return hidden

    def score(self, hidden: Tensor, out: Tensor) -> None:
        """Write the logits of wanted rows [K, V]."""
        size = self.ids.shape[1]
        places: dict[int, list[tuple[int, int]]] = {}
        for at, row in enumerate(self.rows.wanted.tolist()):
            for member, start in enumerate(self.starts.tolist()):
                if start <= row < start + size:
                    places.setdefault(member, []).append((at, row - start))
        if not places:
            return
        keep = size - min(token for found in places.values() for _, token in found)
        chosen = list(places)
        logits = self.executor.skeleton.head(self.ids[chosen, -keep:], hidden[chosen, -keep:])
        for index, member in enumerate(chosen):
            for at, token in places[member]:
                out[at] = logits[index, token - size + keep]

    def _context(self, active: list[int]) -> CachedContext:
        ids = self.ids[active]
        key = ids.cpu().numpy().tobytes()
        if key not in self._contexts:
            self._contexts[key] = self.executor.context(ids, self.cache)
        return self._contexts[key]

    def _block(self, layer: int, halves: int, active: list[int], hidden: Tensor) -> Tensor:
        kinds = self.executor.kinds
        if kinds.is_paged(layer):
            assert isinstance(self.cache, Cache)
            self.cache.layers[layer].tables = self.tables[active, layer]
            return self.executor.run_block(self._context(active), layer, halves, hidden)
        outs = []
        for at, row in zip(active, hidden, strict=True):
            states = self.rows.sequences[self.members[at]].states
            kinds.load(self.cache, layer, states[layer] if layer in states else kinds.fresh(layer))
            outs.append(self.executor.run_block(self._context([at]), layer, halves, row[None]))
            states[layer] = kinds.unload(self.cache, layer, self.length)
        return torch.cat(outs)

    def _inherit(self, layer: int) -> None:
        """A sequence that is computed by its parent so far gets a copy of the state that this block left there."""
        for at, parent in enumerate(self.parents):
            source = self.rows.sequences[self.members[parent]].states
            if parent >= 0 and layer < self.forks[at] and layer in source:
                self.rows.sequences[self.members[at]].states[layer] = copy.deepcopy(source[layer])


def _cache_name(skeleton: Skeleton) -> str:
    """By which name the model's forward takes a cache."""
    parameters = inspect.signature(skeleton.model.forward).parameters
    for name in _CACHE_NAMES:
        if name in parameters:
            return name
    raise RequestError(f"{type(skeleton.model).__name__} takes no cache: it cannot generate under a mask")
