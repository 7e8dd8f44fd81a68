"""Attention and MLP of a block as two separate units.

A sequential residual block computes x + attention(x) and then y + mlp(y). With its MLP's output replaced by zeros it is
the attention half; with its attention's output replaced by zeros it is the MLP half (x + 0 is exact). One half after
the other is the whole block, bit for bit. The children that are attention and MLP are found by trying, not by name: the
pair (a, m) for which

    block without m, then block without a  =  block        block without both  =  identity

A parallel block (x + attention(x) + mlp(x): GPT-NeoX, GPT-J, Falcon) has no such pair: its MLP reads the same stream as
its attention, so the halves cannot run one after the other. Such a model is refused.
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
class SublayerNames:
    """The children of one block that are its attention and its MLP: names as in `block.get_submodule(name)`."""

    attn: str
    mlp: str


@dataclass(frozen=True, eq=False)
class _Probe:
    """A block's input and output [B, T, H] on a few tokens."""

    context: Context
    layer: int
    before: Tensor
    behind: Tensor


class Sublayers:
    """The 2L units of a skeleton: unit 2l is the attention half of block l, unit 2l + 1 its MLP half.

    Attributes:
        halves: names of the attention and the MLP of each block.

    Raises `RequestError` for a model with a block that is not an attention followed by an MLP.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        tokens = min(_PROBE_TOKENS, skeleton.max_tokens or _PROBE_TOKENS)
        ids = torch.arange(2 * tokens, device=skeleton.device).view(2, tokens) % skeleton.vocab_size
        context = skeleton.context(ids)
        skeleton.expect(range(skeleton.n_layers))
        # Length of the tuple that a child returns; children that return the bare tensor are not in here.
        self._tuples: dict[nn.Module, int] = {}
        # Children that add their result to the residual stream themselves, which they get as an argument (BLOOM).
        self._adding: set[nn.Module] = set()
        found: list[SublayerNames | None] = []
        with torch.inference_mode():
            probes: list[_Probe] = []
            hidden = context.embedding
            for layer in range(skeleton.n_layers):
                probes.append(_Probe(context, layer, hidden, self._watched(context, layer, hidden)))
                found.append(self._find(probes[-1], found))
                hidden = probes[-1].behind
            self.halves: list[SublayerNames] = [
                halves or self._as_of_another(probe, found) for probe, halves in zip(probes, found, strict=True)
            ]

    @property
    def n_units(self) -> int:
        """Number of units, 2L."""
        return 2 * self.skeleton.n_layers

    def run(self, context: Context, unit: int, hidden: Tensor) -> Tensor:
        """Unit `unit` on `hidden` [B, T, H] → [B, T, H]; the other half of its block is not computed."""
        layer, part = divmod(unit, 2)
        halves = self.halves[layer]
        return self._without((halves.mlp if part == 0 else halves.attn,), context, layer, hidden)

    def n_parameters(self, unit: int) -> int:
        """Parameters of the child that is the half of `unit`, without its norm, which is another child."""
        layer, part = divmod(unit, 2)
        halves = self.halves[layer]
        child = self.skeleton.blocks[layer].get_submodule(halves.attn if part == 0 else halves.mlp)
        return parameters_of(child.parameters())

    def silencing_parameters(self, unit: int) -> list[str]:
        """Names, within the block, of the parameters that make the half of `unit` add zero when they are zero.

        They are those of one linear map, the output projection of the half. Raises `RequestError` where no single map
        suffices (a mixture of experts has several).
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
            f"block {layer} has no single projection that makes its {PARTS[part]} add zero: a checkpoint without it "
            "cannot be written; use layers as players"
        )

    def _silent_without(self, parameters: dict[str, nn.Parameter], context: Context, unit: int) -> bool:
        """Whether the unit adds exactly zero while these parameters are zero; they are restored afterwards."""
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
        """Run block `layer` on `hidden` [B, T, H], and note which of its children return tuples."""

        def note(child: nn.Module, _: Any, returned: Any) -> None:
            if isinstance(returned, tuple):
                self._tuples[child] = len(returned)

        handles = [child.register_forward_hook(note) for child in self.skeleton.blocks[layer].children()]
        try:
            return context.run(layer, hidden)
        finally:
            for handle in handles:
                handle.remove()

    def _find(self, probe: _Probe, before: list[SublayerNames | None]) -> SublayerNames | None:
        """The halves of a block, found by trying pairs of children; None where no pair fits."""
        block = self.skeleton.blocks[probe.layer]
        # Zeros from the norm before a half without biases make it add zero too, but only the half has a matrix.
        names = [name for name, child in block.named_children() if any(p.dim() > 1 for p in child.parameters())]
        pairs = [SublayerNames(attn, mlp) for attn in names for mlp in names if attn != mlp]
        if before and before[-1] in pairs:  # blocks are mostly alike: try the pair of the previous block first
            pairs.insert(0, before[-1])
        for adding in (False, True):
            for halves in pairs:
                if self._splits(probe, halves, adding=adding):
                    return halves
        return None

    def _as_of_another(self, probe: _Probe, found: list[SublayerNames | None]) -> SublayerNames:
        """The halves of another block of the same class, for a block whose attention is zero and so mixes no tokens."""
        blocks = self.skeleton.blocks
        block = blocks[probe.layer]
        for other, halves in zip(blocks, found, strict=True):
            if halves is not None and type(other) is type(block):
                adding = other.get_submodule(halves.attn) in self._adding
                if self._splits(probe, halves, adding=adding, mixing=False):
                    return halves
        raise RequestError(
            f"block {probe.layer} ({type(block).__name__}) is not an attention followed by an MLP: sublayers cannot be "
            "players of this model; use layers"
        )

    def _splits(self, probe: _Probe, halves: SublayerNames, *, adding: bool, mixing: bool = True) -> bool:
        """Whether the halves, one after the other, are the block; with `mixing` only the first may mix tokens.

        `adding` says that the children add their result to the residual stream themselves; it is remembered for them
        where the answer is yes.
        """
        children = {self.skeleton.blocks[probe.layer].get_submodule(name) for name in (halves.attn, halves.mlp)}
        self._adding |= children if adding else set()
        if self._makes(probe, halves, mixing=mixing):
            return True
        self._adding -= children
        return False

    def _makes(self, probe: _Probe, halves: SublayerNames, *, mixing: bool) -> bool:
        """As `_splits`, with what is known of the children so far."""

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
            return False  # the child returns something other than a residual stream: it is not a half


def _reads(run: Callable[[Tensor], Tensor], hidden: Tensor, tokens: int) -> bool:
    """Whether what is added to the last token of `hidden` [B, T, H] depends on the first `tokens` tokens.

    Differences of rounding do not count: experts that process other tokens in the same batch sum in another order. A
    recurrent state may have forgotten the first token by the last one, and the MLP of RWKV reads the previous token. So
    an attention is one that reads any earlier token, and an MLP one that does not read the first.
    """
    changed = hidden.clone()
    changed[:, :tokens] = changed[:, :tokens].roll(1, dims=-1)  # rolled, since a LayerNorm would undo a constant shift
    before, after = run(hidden)[:, -1].float(), run(changed)[:, -1].float()
    added = before - hidden[:, -1].float()
    return bool((before - after).norm() > 16 * torch.finfo(hidden.dtype).eps * added.norm())


def _zeros(width: int, length: int) -> Callable[..., Any]:
    """A forward that returns zeros [..., width], bare where `length` is 0, else first in a tuple of that length."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = next(
            value
            for value in (*args, *kwargs.values())
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2
        )
        zeros = stream.new_zeros((*stream.shape[:-1], width))
        return (zeros, *[None] * (length - 1)) if length else zeros

    return forward


def _stream(width: int, length: int) -> Callable[..., Any]:
    """As `_zeros`, but it returns its second argument [..., width]: the residual stream, after the normalised input."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        _, stream, *_ = (
            value
            for value in (*args, *kwargs.values())
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[-1] == width and value.dim() > 2
        )
        return (stream, *[None] * (length - 1)) if length else stream

    return forward
