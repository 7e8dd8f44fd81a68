"""What a model hands to its blocks and gets back, learnt by watching one forward pass.

A block of one family is called as `block(hidden, attention_mask=..., position_embeddings=...)` and returns a tensor, of
another as `block(hidden, mask, cache, ...)` and returns a tuple. Nothing here knows names: the hidden state is found by
following the tensor from one block's output to the next block's input, a key-value cache by its type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from layercoop_fast.errors import RequestError, RunError

Returned = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one call of one block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def hidden(self, where: int | str) -> Tensor:
        """The hidden state among the arguments, at a position or under a name."""
        value = self.args[where] if isinstance(where, int) else self.kwargs[where]
        if not isinstance(value, Tensor):
            raise RunError(f"a block got {type(value).__name__} where its hidden state was expected")
        return value

    def with_hidden(self, where: int | str, hidden: Tensor | None) -> BlockCall:
        """The same call on another hidden state (None leaves the place empty, so that no state is kept alive)."""
        if isinstance(where, int):
            return BlockCall((*self.args[:where], hidden, *self.args[where + 1 :]), self.kwargs)
        return BlockCall(self.args, {**self.kwargs, where: hidden})

    def arguments(self) -> Iterator[tuple[int | str, Any]]:
        """All arguments with their position or name."""
        yield from enumerate(self.args)
        yield from self.kwargs.items()


@dataclass(frozen=True)
class Convention:
    """How the blocks of a model are called: where the hidden state comes in, and where it comes out.

    `takes` is a position or a keyword; `gives` is None when a block returns the bare tensor, else the index of the
    hidden state in the tuple of `width` entries that it returns.
    """

    takes: int | str
    gives: int | None
    width: int = 1

    def unwrap(self, returned: Returned) -> Tensor:
        """The hidden state in what a block returned."""
        value = returned if self.gives is None else returned[self.gives]
        if not isinstance(value, Tensor):
            raise RunError(f"a block returned {type(value).__name__} where its hidden state was expected")
        return value

    def wrap(self, hidden: Tensor) -> Returned:
        """What a block that leaves the hidden state as it is would return."""
        if self.gives is None:
            return hidden
        return tuple(hidden if index == self.gives else None for index in range(self.width))


def learn_convention(blocks: Sequence[nn.Module], forward: Callable[[], Any]) -> Convention:
    """Watch one real pass (`forward()` runs the model) and learn how its blocks are called.

    Raises `RequestError` when the blocks are not one plain chain: called out of order or more than once, a key-value
    cache among the arguments although none was asked for, or arithmetic between the blocks.
    """
    order: list[int] = []
    calls: dict[int, BlockCall] = {}
    results: dict[int, Returned] = {}
    handles = []
    for index, block in enumerate(blocks):

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            order.append(index)
            calls[index] = BlockCall(args, kwargs)

        def after(_: nn.Module, __: Any, result: Returned, index: int = index) -> None:
            results[index] = result

        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    if order != list(range(len(blocks))):
        raise RequestError(
            f"the model calls its blocks in the order {order[:12]}, not once each from first to last: "
            "it cannot be played as embed, blocks, head"
        )
    for index, call in calls.items():
        refuse_caches(index, call)
    conventions = {_between(results[i], calls[i + 1], i) for i in range(len(blocks) - 1)}
    if len(conventions) > 1:
        raise RequestError(f"the model's blocks are not called alike ({conventions}): they cannot stand in a chain")
    if conventions:
        return conventions.pop()
    return _single(calls[0], results[0])


def refuse_caches(index: int, call: BlockCall) -> None:
    """Raise `RequestError` if a call carries a key-value or state cache: it would leak from one mask into the next."""
    for where, value in call.arguments():
        if isinstance(value, Cache) or type(value).__name__.endswith("Cache"):
            raise RequestError(
                f"block {index} was handed a {type(value).__name__} as {where!r} although use_cache=False: "
                "its state would leak from one mask into the next"
            )


@contextmanager
def replaced_forward(blocks: Sequence[nn.Module], make: Callable[[int], Callable[..., Returned]]) -> Iterator[None]:
    """Within the block, call `make(index)` instead of each block's own `forward`; the modules stay in their places.

    The model's own code runs around the blocks (embedding, masks, positions, final norm, head, soft caps), and whatever
    attribute of a block it reads is still there.
    """
    # A block may have a forward of its own already: accelerate hooks blocks so, to bring them what lies elsewhere.
    own = [vars(block).get("forward") for block in blocks]
    for index, block in enumerate(blocks):
        block.forward = make(index)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _between(returned: Returned, call: BlockCall, index: int) -> Convention:
    """The convention that the step from block `index` to the next one follows."""
    entries: Sequence[Any] = (returned,) if isinstance(returned, Tensor) else returned
    arguments = [(where, value) for where, value in call.arguments() if isinstance(value, Tensor)]
    for same in (lambda a, b: a is b, _equal):
        for gives, entry in enumerate(entries):
            for where, value in arguments:
                if isinstance(entry, Tensor) and same(entry, value):
                    return Convention(where, None if isinstance(returned, Tensor) else gives, len(entries))
    raise RequestError(
        f"what block {index + 1} receives is not what block {index} returned: this model computes between its blocks, "
        "and skipping a block would skip part of that; such a family needs an adapter, which does not exist yet"
    )


def _single(call: BlockCall, returned: Returned) -> Convention:
    """The convention of a model of one block, where nothing can be followed from block to block."""
    entries: Sequence[Any] = (returned,) if isinstance(returned, Tensor) else returned
    for gives, entry in enumerate(entries):
        for where, value in call.arguments():
            if isinstance(entry, Tensor) and isinstance(value, Tensor) and _alike(entry, value):
                return Convention(where, None if isinstance(returned, Tensor) else gives, len(entries))
    raise RequestError("the model's only block returns nothing shaped like one of its arguments")


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.is_floating_point() and b.is_floating_point() and a.shape == b.shape


def _equal(a: Tensor, b: Tensor) -> bool:
    return _alike(a, b) and a.dtype == b.dtype and torch.equal(a, b)
