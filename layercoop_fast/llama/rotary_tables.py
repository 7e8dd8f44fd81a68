"""The angles by which a model's blocks turn queries and keys, read from the model's own rotary modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.llama.block import UnfitError

_PROBE = 16  # positions


@dataclass(frozen=True)
class RotaryCall:
    """A model's own rotary module, and how it was called."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def table(self, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions 0 .. count - 1: float32 [count, D / 2] each, alike for both halves."""
        cos, sin = self._at(torch.arange(count))
        half = cos.shape[-1] // 2
        return cos[:, :half].contiguous(), sin[:, :half].contiguous()

    def _at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        def replaced(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.zeros(1, 1, 1) if value.is_floating_point() else positions[None]

        with torch.inference_mode():
            cos, sin = self.module(*map(replaced, self.args), **{key: replaced(v) for key, v in self.kwargs.items()})
        return cos[0], sin[0]

    def check(self, head_dim: int, max_tokens: int | None) -> None:
        """Raise `UnfitError` unless the angles are one table for all texts, of the form that kernels turn by."""
        cos, sin = self._at(torch.arange(_PROBE))
        half = head_dim // 2
        if cos.shape != (_PROBE, head_dim) or head_dim % 2:
            raise UnfitError("it does not rotate whole heads")
        if not all(torch.equal(angles[:, :half], angles[:, half:]) for angles in (cos, sin)):
            raise UnfitError("the halves of its heads are rotated by different angles")
        far = torch.cat([torch.arange(_PROBE), torch.tensor([(max_tokens or 0) + _PROBE])])
        if not torch.equal(self._at(far)[0][:_PROBE], cos):
            raise UnfitError("the angles of its rotation depend on the length of the text")


@contextmanager
def rotary_calls(model: nn.Module) -> Iterator[list[tuple[RotaryCall, tuple[Tensor, Tensor]]]]:
    """Collect, inside `with`, every call of a rotary module with the cosines and sines [W, T, D] it returned."""
    seen: list[tuple[RotaryCall, tuple[Tensor, Tensor]]] = []

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if isinstance(result, tuple) and len(result) == 2 and all(isinstance(item, Tensor) for item in result):
            seen.append((RotaryCall(module, args, kwargs), result))

    rotary = [module for module in model.modules() if "rotary" in type(module).__name__.lower()]
    handles = [module.register_forward_hook(after, with_kwargs=True) for module in rotary]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def which_rotary(
    call: BlockCall,
    convention: Convention,
    seen: list[tuple[RotaryCall, tuple[Tensor, Tensor]]],
    rotaries: list[RotaryCall],
) -> int:
    """Return the number in `rotaries` of the table that a block is handed, added there where it is new.

    `seen` holds the calls of rotary modules with the cosines and sines [W, T, D] they returned (`rotary_calls`). Raises
    `UnfitError` where the block is not handed one of these.
    """
    handed = [value for where, value in call.arguments() if where != convention.takes and isinstance(value, tuple)]
    found = [entry for entry, (cos, _) in seen if any(len(pair) == 2 and pair[0] is cos for pair in handed)]
    if len(found) != 1:
        raise UnfitError("it is not handed one pair of cosines and sines that a rotary module made")
    for index, known in enumerate(rotaries):
        if known is found[0]:
            return index
    rotaries.append(found[0])
    return len(rotaries) - 1
