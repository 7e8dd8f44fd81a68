"""Linear neurons: a linear map of the stream inside a gated MLP, and the regression that puts it there.

A gated MLP computes down(act(gate z) ∘ (up z)) from its input z, the normed stream. Where some direction g has
g·z ≈ 1 for every token, a neuron with gate row K·g and up row v is linear:

    act(K g·z) · (v·z) ≈ act(K) · v·z            (SiLU and GELU are nearly the identity at K)

So a part of a block's neurons can be given up for a linear map of the stream, and the checkpoint stays plain. A repair
then has more to predict the missing part of the stream from than the neurons that were there: perplexity falls further
on every kind of text (docs/performance.md, Repair). Trained models have such directions, since some channels of their
streams are nearly constant.

With u [n] the MLP's own neurons, φ [H] = act(K g·z) z, W the output map and e the missing part, the regression is over
all n + H inputs, towards W on the neurons and 0 on φ:

    min  Σ_t w_t |W u_t + e_t − A u_t − B φ_t|²  +  λ |A − W|²  +  μ |B|²

with φ replaced by combinations of it whose sums of products are those of the identity, and these then rotated so that
few of them carry most of B φ. Of all n + H inputs those n stay that cost most to leave out, by the rise of the minimum,
|row of (A, B)|² / (inverse of the penalised sums)_kk; their map is then fitted again.
Source of that rule: Hassibi and Stork, Optimal Brain Surgeon (1993).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.reference.blocks import geglu_reference, swiglu_reference
from layercoop_fast.llama.block import BlockParts, UnfitError, find_parts
from layercoop_fast.masked.players import Players
from layercoop_fast.repair.gains import GainSite
from layercoop_fast.repair.ridge import NormalEquations, check_strength
from layercoop_fast.repair.sites import Site

GATE = 4.0
"""K: SiLU is 0.98 of the identity there, GELU all of it."""

# A direction is constant enough where the root mean square of 1 − g·z is at most this.
_UNSTEADY = 0.25
# Penalty of the direction, relative to the mean square of a number of z.
_SMOOTH = 1e-3
# Strength of the ridge on the linear neurons, of that on the model's own.
_LINEAR = 1 / 3
# Least singular direction of φ that counts, relative to its mean square.
_TINY = 1e-6


@dataclass(frozen=True)
class GateInput:
    """The input z of a gated MLP, as a site whose regression reads it.

    Attributes:
        module: the MLP.
    """

    module: nn.Module

    def reads(self, handed: Tensor, returned: Tensor) -> Tensor:
        """z [..., H]."""
        return handed


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of an MLP after a repair.

    Attributes:
        own: int64 [m], those that stay.
        up: float64 [n − m, H], up rows of the linear ones.
        down: float64 [n, H], what each adds to the stream, own ones first.
    """

    own: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class NeuronSite:
    """A gated MLP without biases whose output is added to the stream: its neurons are chosen and refitted.

    Attributes:
        unit: that it belongs to.
        name: the dotted path of the output map.
        module: the MLP.
        parts: of its block.
        names: of the parameters of gate and up (one where they are one matrix), and of the output map.
        direction: g, float32 [H].
    """

    unit: int
    name: str
    module: nn.Module
    parts: BlockParts
    names: tuple[str, ...]
    direction: Tensor

    def equations(self) -> NeuronEquations:
        """Sums over no tokens, on the device of the weights."""
        base = self.parts.down.weight.detach().double().t()
        width, hidden = base.shape
        sums = NormalEquations.empty(width + hidden, hidden, products=torch.float32, device=base.device)
        return NeuronEquations(base, sums)

    def reads(self, handed: Tensor, returned: Tensor) -> Tensor:
        """The regression's inputs (u, φ) [..., n + H] of z [..., H]."""
        z = handed.flatten(0, -2)
        parts = self.parts
        u = _gated(parts, torch.cat([z @ parts.gate.weight.t(), z @ parts.up.weight.t()], dim=1))
        level = z @ self._gate_row(z.dtype)
        linear = _gated(parts, torch.cat([level[:, None].expand(-1, z.shape[1]), z], dim=1))
        return torch.cat([u, linear], dim=1).view(*handed.shape[:-1], -1)

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name: gate and up [n, H], or both as [2n, H], and the output map [H, n]."""
        modules = (self.parts.gate.module, self.parts.up.module, self.parts.down)
        weights = list(dict.fromkeys(module.weight for module in modules))
        return dict(zip(self.names, weights, strict=True))

    def changed(self, change: Neurons) -> dict[str, Tensor]:
        """New values of the `parameters`, in their dtype and shapes [...]."""
        parts, dtype = self.parts, self.parts.down.weight.dtype
        row = self._gate_row(dtype)
        gate = torch.cat([parts.gate.weight.detach()[change.own], row.expand(len(change.up), -1)])
        up = torch.cat([parts.up.weight.detach()[change.own], change.up.to(dtype)])
        down = change.down.t().to(dtype).contiguous()
        joint = [torch.cat([gate, up])] if len(self.names) == 2 else [gate, up]
        return dict(zip(self.names, [*joint, down], strict=True))

    def _gate_row(self, dtype: torch.dtype) -> Tensor:
        return (GATE * self.direction).to(dtype)


@dataclass
class NeuronEquations:
    """Sums over tokens to choose and refit the neurons of an MLP.

    Attributes:
        base: float64 [n, H], what each neuron of the model adds.
        sums: of the inputs (u, φ), and of the missing parts.
    """

    base: Tensor
    sums: NormalEquations

    def add(self, inputs: Tensor, missing: Tensor, weights: Tensor) -> None:
        """Add N tokens: inputs [N, n + H], missing parts [N, H], weights [N] ≥ 0; errors as of `NormalEquations`."""
        self.sums.add(inputs, missing, weights)

    def __add__(self, other: Any) -> NeuronEquations:
        return replace(self, sums=self.sums + other.sums)

    def __sub__(self, other: Any) -> NeuronEquations:
        return replace(self, sums=self.sums - other.sums)

    def alone(self) -> NormalEquations:
        """The sums of the model's own neurons, to refit the output map alone."""
        width = len(self.base)
        return replace(self.sums, gram=self.sums.gram[:width, :width], cross=self.sums.cross[:width])

    def change(self, strength: float) -> Neurons:
        """The neurons at a strength > 0 of the ridge.

        Raises `RequestError` for another strength, where the neurons are all zero, and where sums exceed float64.
        """
        check_strength(strength)
        width, hidden = self.base.shape
        own, linear = slice(0, width), slice(width, None)
        gram, scale = self.sums.gram, self._scale()
        evened = _evened(gram[linear, linear]) * scale**0.5  # with the mean square of the own neurons
        turned = gram.clone()
        turned[:, linear] = turned[:, linear] @ evened
        turned[linear] = evened.t() @ turned[linear]
        wanted = self._aim()
        aim = torch.cat([wanted[own], evened.t() @ wanted[linear]])
        penalty = self._penalty(width, hidden, strength)
        factor = _factor(turned, penalty)
        base = torch.cat([self.base, self.base.new_zeros(hidden, hidden)])
        found = torch.cholesky_solve(aim + penalty[:, None] * base, factor)
        # Rotated within what is even already, the penalty stays the same: few directions carry most of what φ adds.
        turn = torch.linalg.svd(found[linear]).U
        inverse = torch.cholesky_inverse(factor)
        share = torch.cat([inverse.diagonal()[own], (turn * (inverse[linear, linear] @ turn)).sum(0)])
        price = torch.cat([found[own], turn.t() @ found[linear]]).square().sum(1) / share
        kept = price.topk(width).indices.sort().values
        up = (evened @ turn).t()[kept[kept >= width] - width]
        return self._refitted(kept[kept < width], up, wanted, strength)

    def again(self, like: Neurons, strength: float) -> Neurons:
        """The neurons that other sums chose, with what they add fitted to these; errors as of `change`."""
        check_strength(strength)
        return self._refitted(like.own, like.up, self._aim(), strength)

    def _refitted(self, own: Tensor, up: Tensor, aim: Tensor, strength: float) -> Neurons:
        """What these neurons add: own ones int64 [m], up rows of linear ones [n − m, H], `_aim` [n + H, H]."""
        gram, linear = self.sums.gram, slice(len(self.base), None)
        columns = torch.cat([gram[:, own], gram[:, linear] @ up.t()], dim=1)
        chosen = torch.cat([columns[own], up @ columns[linear]])
        base = torch.cat([self.base[own], self.base.new_zeros(len(up), self.base.shape[1])])
        penalty = self._penalty(len(own), len(up), strength)
        aim = torch.cat([aim[own], up @ aim[linear]])
        down = torch.cholesky_solve(aim + penalty[:, None] * base, _factor(chosen, penalty))
        return Neurons(own, up, down)

    def _scale(self) -> float:
        """The mean square of the model's own neurons, times the weight of all tokens."""
        scale = float(self.sums.gram.diagonal()[: len(self.base)].mean())
        if not scale > 0:
            raise RequestError("a repair needs text on which the inputs of the repaired map are not all zero")
        return scale

    def _aim(self) -> Tensor:
        """Sums of the inputs times what all of them together should add, [n + H, H]."""
        return self.sums.cross + self.sums.gram[:, : len(self.base)] @ self.base

    def _penalty(self, own: int, linear: int, strength: float) -> Tensor:
        """Of each input, first own neurons, then even directions of φ."""
        scale = strength * self._scale()
        return torch.cat([self.base.new_full((own,), scale), self.base.new_full((linear,), _LINEAR * scale)])


def _gated(parts: BlockParts, gate_up: Tensor) -> Tensor:
    """The activation of the first half of the columns times the second half."""
    found: Tensor = (swiglu_reference if parts.activation == "silu" else geglu_reference)(gate_up)
    return found


def _factor(gram: Tensor, penalty: Tensor) -> Tensor:
    """The Cholesky factor of gram + diag(penalty)."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(gram + penalty.diag())
    if failed:
        raise RequestError("the inputs of the repaired map are too large for sums of products in float64")
    return factor


def _evened(gram: Tensor) -> Tensor:
    """Combinations of φ, a column each, whose sums of products are those of the identity: [H, H]."""
    root = _factor(gram, gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny).expand(len(gram)) * _TINY)
    found: Tensor = torch.linalg.solve_triangular(root.t(), torch.eye(len(gram)).to(gram), upper=True)
    return found


def find_gated(players: Players, site: Site | GainSite) -> NeuronSite | None:
    """The gated MLP without biases that a site is the output map of, its direction zero; None for anything else."""
    if not isinstance(site, Site):
        return None
    skeleton = players.skeleton
    block = skeleton.blocks[players.layer(site.unit)]
    model = skeleton.model
    device = str(site.module.weight.device.type)
    try:
        parts = find_parts(block, dtypes=tuple({site.module.weight.dtype}), devices=(device,), one_dtype=False)
    except UnfitError:
        return None
    if parts.down is not site.module or any(each.bias is not None for each in (parts.gate, parts.up, parts.down)):
        return None
    modules = dict.fromkeys((parts.gate.module, parts.up.module, parts.down))
    named = {module: name for name, module in model.named_modules()}
    names = tuple(f"{named[module]}.weight" for module in modules)
    mlp = model.get_submodule(site.name.rpartition(".")[0])
    return NeuronSite(site.unit, site.name, mlp, parts, names, torch.zeros(parts.hidden))


def with_direction(gated: NeuronSite, tokens: Iterable[Tensor]) -> NeuronSite | None:
    """The site with the direction that is nearest to 1 on tokens [N, H] of its `GateInput`; None where none is near."""
    weight = gated.parts.down.weight
    hidden = gated.parts.hidden
    squares = torch.zeros(hidden, hidden, dtype=torch.float64, device=weight.device)
    total, count = squares[0].clone(), 0
    for some in tokens:
        squares += some.float().t() @ some.float()
        total += some.double().sum(0)
        count += len(some)
    squares, total = squares / count, total / count
    scale = float(squares.diagonal().mean())
    if not 0 < scale < math.inf:
        return None
    found = torch.linalg.solve(squares + _SMOOTH * scale * torch.eye(hidden).to(squares), total)
    unsteady = (1 - 2 * found @ total + found @ squares @ found).clamp_min(0).sqrt()
    return replace(gated, direction=found.float()) if float(unsteady) <= _UNSTEADY else None
