"""Key-value caches as transformers' blocks expect them, over our pages or over one sequence's own state.

A cache has one layer object a block, and a model's own forward asks these for lengths to make positions and attention
masks from. Ours answer for the rows at hand whether or not their masks keep the block, so whatever the model derives is
right under any mask.
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
    """Keys and values of rows that all stand at one length, in pages."""

    layer: int
    storage: PageStorage
    length: int
    tables: Tensor
    window: int | None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [S, heads, T, D] of new tokens; return those of all that a new token can see."""
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
    """A block whose tokens see all before them."""

    window = None

    def __init__(self, storage: PageStorage, layer: int, length: int) -> None:
        DynamicLayer.__init__(self)
        self.storage, self.layer, self.length = storage, layer, length
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys come back for so many queries, and the position of the first."""
        return self.length + query_length, 0


class PagedWindowLayer(_Paged, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A block whose tokens see a window; the pages before it are kept, so that a sequence can be wound back."""

    def __init__(self, storage: PageStorage, layer: int, length: int, window: int) -> None:
        DynamicSlidingWindowLayer.__init__(self, sliding_window=window)
        self.storage, self.layer, self.length, self.window = storage, layer, length, window
        self.cumulative_length = length  # what the base class answers lengths from
        self.is_initialized = True


class CacheKinds:
    """What each block of a model keeps: pages, a window of pages, or a state of its own.

    Args:
        model: its config says, by way of transformers' own `DynamicCache`.
        n_layers: number of blocks L.
    """

    def __init__(self, model: PreTrainedModel, n_layers: int) -> None:
        self._templates: list[Any] = list(DynamicCache(config=model.config).layers)
        self._templates += [DynamicLayer() for _ in range(n_layers - len(self._templates))]

    def is_paged(self, layer: int) -> bool:
        """Whether a block keeps keys and values of tokens and nothing else."""
        return type(self._templates[layer]) in (DynamicLayer, DynamicSlidingWindowLayer)

    def fresh(self, layer: int) -> Any:
        """An empty layer object of transformers' own."""
        return copy.deepcopy(self._templates[layer])

    def aside(self, layer: int, length: int) -> Any:
        """A layer object that holds nothing and answers as if it had seen `length` tokens."""
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
        """A cache of transformers' own."""
        return Cache(layers=[self.fresh(layer) for layer in range(len(self._templates))])

    def load(self, cache: Any, layer: int, state: Any) -> None:
        """Let a block go on from a state of its own."""
        cache.layers[layer] = state

    def unload(self, cache: Any, layer: int, length: int) -> Any:
        """What the block left; the cache answers for `length` again."""
        state, cache.layers[layer] = cache.layers[layer], self.aside(layer, length)
        return state

    def cache(self, storage: PageStorage, length: int) -> Cache:
        """A cache for rows that all stand at `length`."""
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
    """The same for a family that carries one list of tensors [B, H, L], a slice of each a block (RWKV).

    Args:
        states: the list that the model begins one sequence with.
    """

    def __init__(self, states: list[Tensor]) -> None:
        self._states = states

    def is_paged(self, layer: int) -> bool:
        """No block keeps keys and values."""
        return False

    def fresh(self, layer: int) -> list[Tensor]:
        """What a block begins with."""
        return [state[..., layer].clone() for state in self._states]

    def empty(self) -> list[Tensor]:
        """What all blocks begin with."""
        return [state.clone() for state in self._states]

    def cache(self, storage: PageStorage, length: int) -> list[Tensor]:
        """The same: no block asks it for lengths."""
        return self.empty()

    def load(self, cache: Any, layer: int, state: list[Tensor]) -> None:
        """Let a block go on from a state of its own."""
        for all_, own in zip(cache, state, strict=True):
            all_[..., layer] = own

    def unload(self, cache: Any, layer: int, length: int) -> list[Tensor]:
        """What the block left."""
        return [state[..., layer].clone() for state in cache]
