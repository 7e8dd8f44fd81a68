"""Key-value caches for transformers' blocks, over pages or over the recurrent state of one sequence.

A cache has a layer object for each block. A model's own forward pass asks these for lengths, to make positions and
attention masks. The layer objects here state the length of the current rows whether or not their masks keep the block,
so that the result is right under any mask.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from layercoop_fast.runtime.pages import PAGE
from layercoop_fast.runtime.storage import PageStorage


class _Paged:
    """Keys and values, in pages, of sequences of equal length."""

    layer: int
    storage: PageStorage
    length: int
    tables: Tensor
    window: int | None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [S, heads, T, D] of new tokens; return those of all tokens that a new one can see."""
        rows, tokens = key_states.shape[0], key_states.shape[2]
        end = self.length + tokens
        positions = torch.arange(self.length, end, device=key_states.device)
        pages = self.tables[:, positions // PAGE].reshape(-1)
        slots = (positions % PAGE).repeat(rows)
        keys, values = (states.transpose(1, 2).flatten(0, 1) for states in (key_states, value_states))
        self.storage.write(self.layer, pages, slots, keys, values)
        first = 0 if self.window is None else max(0, self.length - self.window + 1)
        return self.storage.read(self.layer, self.tables, first, end)


class PagedLayer(_Paged, DynamicLayer):  # type: ignore[misc]
    """A block whose tokens see all earlier tokens."""

    window = None

    def __init__(self, storage: PageStorage, layer: int, length: int) -> None:
        DynamicLayer.__init__(self)
        self.storage, self.layer, self.length = storage, layer, length
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Number of tokens so far."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys for `query_length` new tokens, and the position of the first key."""
        return self.length + query_length, 0


class PagedWindowLayer(_Paged, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A block whose tokens see a window; older pages are kept, so that a sequence can be truncated."""

    def __init__(self, storage: PageStorage, layer: int, length: int, window: int) -> None:
        DynamicSlidingWindowLayer.__init__(self, sliding_window=window)
        self.storage, self.layer, self.length, self.window = storage, layer, length, window
        self.cumulative_length = length  # the base class derives lengths from it
        self.is_initialized = True


class CacheKinds:
    """What each block of a model keeps: pages, a window of pages, or a recurrent state.

    Args:
        model: transformers' own `DynamicCache` derives it from the model's config.
        n_layers: number of blocks L.
    """

    def __init__(self, model: PreTrainedModel, n_layers: int) -> None:
        self._templates: list[Any] = list(DynamicCache(config=model.config).layers)
        self._templates += [DynamicLayer() for _ in range(n_layers - len(self._templates))]

    def is_paged(self, layer: int) -> bool:
        """Whether a block keeps only keys and values of tokens."""
        return type(self._templates[layer]) in (DynamicLayer, DynamicSlidingWindowLayer)

    def fresh(self, layer: int) -> Any:
        """An empty layer object of transformers."""
        return copy.deepcopy(self._templates[layer])

    def aside(self, layer: int, length: int) -> Any:
        """A layer object without content that reports a length of `length` tokens."""
        found = self.fresh(layer)
        if hasattr(found, "cumulative_length"):
            found.cumulative_length = length
        elif hasattr(found, "get_seq_length"):
            found.get_seq_length = lambda: length
            found.get_mask_sizes = lambda queries: (length + queries, 0)
        if hasattr(found, "has_previous_state"):
            found.has_previous_state = dict.fromkeys(found.has_previous_state, length > 0)
        return found

    def empty(self) -> Cache:
        """A cache of empty layer objects."""
        return Cache(layers=[self.fresh(layer) for layer in range(len(self._templates))])

    def load(self, cache: Any, layer: int, state: Any) -> None:
        """Set the recurrent state of a block."""
        cache.layers[layer] = state

    def unload(self, cache: Any, layer: int, length: int) -> Any:
        """The recurrent state of a block after a call; the cache reports `length` for it again."""
        state, cache.layers[layer] = cache.layers[layer], self.aside(layer, length)
        return state

    def cache(self, storage: PageStorage, length: int) -> Cache:
        """A cache for sequences of the length `length`."""
        layers = []
        for layer, template in enumerate(self._templates):
            if not self.is_paged(layer):
                layers.append(self.aside(layer, length))
            elif isinstance(template, DynamicSlidingWindowLayer):
                layers.append(PagedWindowLayer(storage, layer, length, template.sliding_window))
            else:
                layers.append(PagedLayer(storage, layer, length))
        return Cache(layers=layers)


class StateListKinds:
    """As `CacheKinds`, for a family whose state is one list of tensors [B, H, L], a slice for each block (RWKV).

    Args:
        states: the initial state of a sequence, [1, H, L] each.
    """

    def __init__(self, states: list[Tensor]) -> None:
        self._states = states

    def is_paged(self, layer: int) -> bool:
        """False: no block keeps keys and values."""
        return False

    def fresh(self, layer: int) -> list[Tensor]:
        """The initial state of a block, a list of [1, H]."""
        return [state[..., layer].clone() for state in self._states]

    def empty(self) -> list[Tensor]:
        """The initial state of all blocks, a list of [1, H, L]."""
        return [state.clone() for state in self._states]

    def cache(self, storage: PageStorage, length: int) -> list[Tensor]:
        """As `empty`, a list of [1, H, L]: no block asks for lengths."""
        return self.empty()

    def load(self, cache: Any, layer: int, state: list[Tensor]) -> None:
        """Set the state of a block, a list of [1, H]."""
        for all_, own in zip(cache, state, strict=True):
            all_[..., layer] = own

    def unload(self, cache: Any, layer: int, length: int) -> list[Tensor]:
        """The state of a block after a call, a list of [1, H]."""
        return [state[..., layer].clone() for state in cache]
