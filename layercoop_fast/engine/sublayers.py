"""Attention and MLP of a block as two units of their own.

A sequential residual block computes x + attention(x) and then y + mlp(y). Run with its MLP's output replaced by zeros
it is the attention half, with its attention's output replaced by zeros the MLP half (x + 0 is exact), and one half
after the other is the whole block, bit for bit. Which children these are is found by trying, not by name: the pair
(a, m) for which

    block without m, then block without a  =  block        block without both  =  nothing done

A parallel block (x + attention(x) + mlp(x): GPT-NeoX, GPT-J, Falcon) has no such pair: its MLP reads the same stream as
its attention, so neither half can stand alone in a chain, and it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layercoop_fast.engine.quantised import parameters_of
from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import PARTS

_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Halves:
    """The children of one block that stand for its two halves: names as in `block.get_submodule(name)`."""

    attn: str
    mlp: str


@dataclass(frozen=True, eq=False)
class _Probe:
    """A block by what it makes of a few tokens: the stream [B, T, H] before it and behind it."""

    context: Context
    layer: int
    before: Tensor
    behind: Tensor


class Sublayers:
    """The 2L units of a skeleton: unit 2l is the attention half of block l, unit 2l + 1 its MLP half.

    Raises `RequestError` for a model one of whose blocks does not fall into two halves.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        tokens = min(_PROBE_TOKENS, skeleton.max_tokens or _PROBE_TOKENS)
        ids = torch.arange(2 * tokens, device=skeleton.device).view(2, tokens) % skeleton.vocab_size
        context = skeleton.context(ids)
        skeleton.expect(range(skeleton.n_layers))
        # How many entries the tuple has that a child returns; children that return the bare tensor are not in here.
        self._tuples: dict[nn.Module, int] = {}
        # The children that add what they compute to the stream themselves, which they are handed besides (BLOOM).
        self._adding: set[nn.Module] = set()
        found: list[Halves | None] = []
        with torch.inference_mode():
            probes: list[_Probe] = []
            hidden = context.embedding
            for layer in range(skeleton.n_layers):
                probes.append(_Probe(context, layer, hidden, self._watched(context, layer, hidden)))
                found.append(self._find(probes[-1], found))
                hidden = probes[-1].behind
            self.halves: list[Halves] = [
                halves or self._as_of_another(probe, found) for probe, halves in zip(probes, found, strict=True)
            ]

    @property
    def n_units(self) -> int:
        """Number of units, 2L."""
        return 2 * self.skeleton.n_layers

    def run(self, context: Context, unit: int, hidden: Tensor) -> Tensor:
        """Unit `unit` on `hidden` [B, T, H] → [B, T, H]; the silenced half is not computed."""
        layer, part = divmod(unit, 2)
        halves = self.halves[layer]
        return self._without((halves.mlp if part == 0 else halves.attn,), context, layer, hidden)

    def n_parameters(self, unit: int) -> int:
        """Parameters of the child that is the half of `unit` (its norm, which stands beside it, not counted)."""
        layer, part = divmod(unit, 2)
        halves = self.halves[layer]
        child = self.skeleton.blocks[layer].get_submodule(halves.attn if part == 0 else halves.mlp)
        return parameters_of(child.parameters())

    def silencing_parameters(self, unit: int) -> list[str]:
        """Names, within the block, of the parameters whose zeroing makes the half of `unit` add nothing.

        They are those of one linear map, the last of the half (its output projection). Raises `RequestError` where no
        single map does it (a mixture of experts has many).
        """
        layer, part = divmod(unit, 2)
        block, halves = self.skeleton.block(layer), self.halves[layer]
        half = halves.attn if part == 0 else halves.mlp
        tokens = min(_PROBE_TOKENS, self.skeleton.max_tokens or _PROBE_TOKENS)
        context = self.skeleton.context(torch.arange(tokens, device=self.skeleton.device).view(1, tokens))
        for name, module in reversed(list(block.get_submodule(half).named_modules(prefix=half))):
            own = dict(module.named_parameters(recurse=False))
            if any(parameter.dim() == 2 for parameter in own.values()) and self._silent_without(own, context, unit):
                return [f"{name}.{key}" for key in own]
        raise RequestError(
            f"no single projection of block {layer} silences its {PARTS[part]}: a checkpoint that leaves it out cannot "
            "be written; use layers as players"
        )

    def _silent_without(self, parameters: dict[str, nn.Parameter], context: Context, unit: int) -> bool:
        """Whether the unit adds exactly nothing with these parameters zeroed (for a moment)."""
        kept = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for parameter in parameters.values():
                parameter.data = torch.zeros_like(parameter.data)
            with torch.inference_mode():
                return torch.equal(self.run(context, unit, context.embedding), context.embedding)
        finally:
            for name, parameter in parameters.items():
                parameter.data = kept[name]

    def _without(self, names: tuple[str, ...], context: Context, layer: int, hidden: Tensor) -> Tensor:
        """Block `layer` with the named children returning zeros instead of computing."""
        with self._silenced([self.skeleton.blocks[layer].get_submodule(name) for name in names], hidden.shape[-1]):
            return context.run(layer, hidden)

    @contextmanager
    def _silenced(self, children: list[nn.Module], width: int) -> Iterator[None]:
        for child in children:
            child.forward = (_stream if child in self._adding else _zeros)(width, self._tuples.get(child, 0))
        try:
            yield
        finally:
            for child in children:
                del child.forward

    def _watched(self, context: Context, layer: int, hidden: Tensor) -> Tensor:
        """Block `layer` as it is, learning what its children return."""

        def note(child: nn.Module, _: Any, returned: Any) -> None:
            if isinstance(returned, tuple):
                self._tuples[child] = len(returned)

        handles = [child.register_forward_hook(note) for child in self.skeleton.blocks[layer].children()]
        try:
            return context.run(layer, hidden)
        finally:
            for handle in handles:
                handle.remove()

    def _find(self, probe: _Probe, before: list[Halves | None]) -> Halves | None:
        """The halves of a block, found by trying; None where no pair of children is that."""
        block = self.skeleton.blocks[probe.layer]
        # A norm before a half without biases silences it too, but is not the half: that multiplies by a matrix.
        names = [name for name, child in block.named_children() if any(p.dim() > 1 for p in child.parameters())]
        pairs = [Halves(attn, mlp) for attn in names for mlp in names if attn != mlp]
        if before and before[-1] in pairs:  # blocks are mostly alike, so the last answer is tried first
            pairs.insert(0, before[-1])
        for adding in (False, True):
            for halves in pairs:
                if self._splits(probe, halves, adding=adding):
                    return halves
        return None

    def _as_of_another(self, probe: _Probe, found: list[Halves | None]) -> Halves:
        """The halves of another block of the class, where a block has an attention of zeros, which mixes no tokens."""
        blocks = self.skeleton.blocks
        block = blocks[probe.layer]
        for other, halves in zip(blocks, found, strict=True):
            if halves is not None and type(other) is type(block):
                adding = other.get_submodule(halves.attn) in self._adding
                if self._splits(probe, halves, adding=adding, mixing=False):
                    return halves
        raise RequestError(
            f"block {probe.layer} ({type(block).__name__}) does not fall into an attention and an MLP that run one "
            "after the other: sublayers cannot be players of this model; use layers"
        )

    def _splits(self, probe: _Probe, halves: Halves, *, adding: bool, mixing: bool = True) -> bool:
        """Whether the halves make the block, one after the other, and only the first mixes tokens, if `mixing`.

        Where they are `adding` what they compute to the stream themselves, that is kept in mind if they do.
        """
        children = {self.skeleton.blocks[probe.layer].get_submodule(name) for name in (halves.attn, halves.mlp)}
        self._adding |= children if adding else set()
        if self._makes(probe, halves, mixing=mixing):
            return True
        self._adding -= children
        return False

    def _makes(self, probe: _Probe, halves: Halves, *, mixing: bool) -> bool:
        """Whether the halves make the block, as the children are known."""

        def without(*names: str) -> Callable[[Tensor], Tensor]:
            return lambda value: self._without(names, probe.context, probe.layer, value)

        first, second, neither = without(halves.mlp), without(halves.attn), without(halves.attn, halves.mlp)
        try:
            return (
                torch.equal(neither(probe.before), probe.before)
                and torch.equal(second(first(probe.before)), probe.behind)
                and not _reads(second, probe.before, 1)
                and (not mixing or _reads(first, probe.before, probe.before.shape[1] - 1))
            )
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, StopIteration):
            return False  # zeros of the stream's width are not what this child returns: it is not a half


def _reads(run: Callable[[Tensor], Tensor], hidden: Tensor, tokens: int) -> bool:
    """Whether what is added to the last token changes with the first so many tokens, beyond rounding.

    Rounding alone can change: experts that are handed other tokens beside it sum in another order. A recurrent state
    may have forgotten the first token by then, and the MLP of RWKV looks at the token before: so an attention may read
    any earlier token, and what an MLP must not read is the first one.
    """
    changed = hidden.clone()
    changed[:, :tokens] = changed[:, :tokens].roll(1, dims=-1)  # not a shift: a LayerNorm would take that away again
    before, after = run(hidden)[:, -1].float(), run(changed)[:, -1].float()
    added = before - hidden[:, -1].float()
    return bool((before - after).norm() > 16 * torch.finfo(hidden.dtype).eps * added.norm())


def _zeros(width: int, entries: int) -> Callable[..., Any]:
    """A forward that returns zeros [..., width], bare or first in a tuple of `entries`."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = next(
            value
            for value in (*args, *kwargs.values())
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2
        )
        zeros = stream.new_zeros((*stream.shape[:-1], width))
        return (zeros, *[None] * (entries - 1)) if entries else zeros

    return forward


def _stream(width: int, entries: int) -> Callable[..., Any]:
    """A forward that returns the second tensor [..., width] it is handed, the stream beside what was normalised."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        _, stream, *_ = (
            value
            for value in (*args, *kwargs.values())
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[-1] == width and value.dim() > 2
        )
        return (stream, *[None] * (entries - 1)) if entries else stream

    return forward
