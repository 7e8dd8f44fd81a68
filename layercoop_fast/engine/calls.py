"""How a model calls its blocks and what they return, learnt from one forward pass.

The blocks of one family are called as `block(hidden, attention_mask=..., position_embeddings=...)` and return a tensor;
those of another as `block(hidden, mask, cache, ...)` and return a tuple. No names are assumed: the hidden state is
found by following the tensor from one block's output to the next block's input, a key-value cache by its type.
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
        """The hidden state [B, T, H] among the arguments, at a position or under a name."""
        value = self.args[where] if isinstance(where, int) else self.kwargs[where]
        if not isinstance(value, Tensor):
            raise RunError(f"a block got {type(value).__name__} where its hidden state was expected")
        return value

    def with_hidden(self, where: int | str, hidden: Tensor | None) -> BlockCall:
        """The same call on another hidden state [B, T, H]; None leaves its place empty, so that no state is kept."""
        if isinstance(where, int):
            return BlockCall((*self.args[:where], hidden, *self.args[where + 1 :]), self.kwargs)
        return BlockCall(self.args, {**self.kwargs, where: hidden})

    def to(self, dtype: torch.dtype) -> BlockCall:
        """The same call with its floating-point tensors, and those in tuples, in another dtype."""

        def converted(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(converted, value))
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return BlockCall(converted(self.args), {name: converted(value) for name, value in self.kwargs.items()})

    def arguments(self) -> Iterator[tuple[int | str, Any]]:
        """All arguments with their position or name."""
        yield from enumerate(self.args)
        yield from self.kwargs.items()


@dataclass(frozen=True)
class Convention:
    """How the blocks of a model are called: where the hidden state stands in their arguments and in their results.

    Attributes:
        takes: position or keyword of the hidden state among the arguments.
        gives: None where a block returns the bare tensor, else the index of the hidden state in the tuple.
        width: length of the tuple that a block returns.
    """

    takes: int | str
    gives: int | None
    width: int = 1

    def unwrap(self, returned: Returned) -> Tensor:
        """The hidden state [B, T, H] in what a block returned."""
        value = returned if self.gives is None else returned[self.gives]
        if not isinstance(value, Tensor):
            raise RunError(f"a block returned {type(value).__name__} where its hidden state was expected")
        return value

    def wrap(self, hidden: Tensor) -> Returned:
        """What a block would return whose output is `hidden` [B, T, H]."""
        if self.gives is None:
            return hidden
        return tuple(hidden if index == self.gives else None for index in range(self.width))


def learn_convention(blocks: Sequence[nn.Module], forward: Callable[[], Any]) -> Convention:
    """Observe one forward pass (`forward()` runs the model) and learn how its blocks are called.

    Raises `RequestError` where the blocks are not one plain chain: they are called out of order or more than once, get
    a key-value cache although none was requested, or the model computes between its blocks.
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
            "it cannot be run as embedding, blocks, head"
        )
    for index, call in calls.items():
        refuse_caches(index, call)
    conventions = {_between(results[i], calls[i + 1], i) for i in range(len(blocks) - 1)}
    if len(conventions) > 1:
        raise RequestError(f"the model calls its blocks in different ways ({conventions}): they do not form a chain")
    if conventions:
        return conventions.pop()
    return _single(calls[0], results[0])


def refuse_caches(index: int, call: BlockCall) -> None:
    """Raise `RequestError` where a call has a key-value or state cache: it would leak from one mask into the next."""
    for where, value in call.arguments():
        if isinstance(value, Cache) or type(value).__name__.endswith("Cache"):
            raise RequestError(
                f"block {index} was given a {type(value).__name__} as {where!r} although use_cache=False: "
                "its state would leak from one mask into the next"
            )


@contextmanager
def replaced_forward(blocks: Sequence[nn.Module], make: Callable[[int], Callable[..., Returned]]) -> Iterator[None]:
    """Within the `with` block, `make(index)` replaces the `forward` of each model block.

    The modules stay in their places, so the model's own code around the blocks (embedding, masks, positions, final
    norm, head, soft caps) runs unchanged, and finds every attribute of a block that it reads.
    """
    # A block may have a `forward` in its instance already: accelerate adds one that fetches weights from other devices.
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
    """The convention of the step from block `index` to the next one."""
    outputs: Sequence[Any] = (returned,) if isinstance(returned, Tensor) else returned
    arguments = [(where, value) for where, value in call.arguments() if isinstance(value, Tensor)]
    for same in (lambda a, b: a is b, _equal):
        for gives, output in enumerate(outputs):
            for where, value in arguments:
                if isinstance(output, Tensor) and same(output, value):
                    return Convention(where, None if isinstance(returned, Tensor) else gives, len(outputs))
    raise RequestError(
        f"block {index + 1} does not receive what block {index} returned: this model computes between its blocks, "
        "and skipping a block would skip part of that; such a family needs an adapter, which does not exist yet"
    )


def _single(call: BlockCall, returned: Returned) -> Convention:
    """The convention of a model of one block: the output has the shape of the hidden state."""
    outputs: Sequence[Any] = (returned,) if isinstance(returned, Tensor) else returned
    for gives, output in enumerate(outputs):
        for where, value in call.arguments():
            if isinstance(output, Tensor) and isinstance(value, Tensor) and _alike(output, value):
                return Convention(where, None if isinstance(returned, Tensor) else gives, len(outputs))
    raise RequestError("the model's only block returns no tensor of the shape of one of its arguments")


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.is_floating_point() and b.is_floating_point() and a.shape == b.shape


def _equal(a: Tensor, b: Tensor) -> bool:
    return _alike(a, b) and a.dtype == b.dtype and torch.equal(a, b)
