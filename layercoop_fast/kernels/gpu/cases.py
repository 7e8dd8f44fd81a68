"""The small case that each kernel is compared on, with its oracle on the CPU, before it is used on a device.

Sizes are awkward (no multiples of a block) and small: a case takes microseconds once its kernel is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.kernels.gpu.all_masks import AllMasks
from layercoop_fast.kernels.gpu.decode_attention import launch_decode
from layercoop_fast.kernels.gpu.gather_norm import launch_norm
from layercoop_fast.kernels.gpu.gemv import launch_quantised
from layercoop_fast.kernels.gpu.linear_cross_entropy import launch_head_loss
from layercoop_fast.kernels.gpu.paged_attention import launch_paged
from layercoop_fast.kernels.gpu.rotary import launch_rotary
from layercoop_fast.kernels.gpu.scatter_residual import launch_scatter
from layercoop_fast.kernels.gpu.surrogate import DeviceNetworks, launch_logits, launch_marginals
from layercoop_fast.kernels.gpu.swiglu import launch_gated
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.quantise import pack
from layercoop_fast.kernels.reference.attention import (
    PagedContext,
    Teams,
    decode_attention_reference,
    paged_attention_reference,
)
from layercoop_fast.kernels.reference.blocks import (
    HeadNorms,
    gather_norm_reference,
    geglu_reference,
    rotary_reference,
    scatter_residual_reference_,
    swiglu_reference,
)
from layercoop_fast.kernels.reference.head import linear_cross_entropy_reference
from layercoop_fast.kernels.reference.networks import predict_logits_reference, predict_reference
from layercoop_fast.kernels.reference.quantised import quantised_linear_reference

# How far a kernel may be from its oracle, as a share of the oracle's largest number: both round, in another order.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class CheckCase:
    """A kernel's result [...] on its device, and what it should be, on the CPU."""

    found: Tensor
    expected: Tensor

    def difference(self) -> float:
        """The largest difference as a share of the largest expected number; infinite where a number is none."""
        found, expected = self.found.detach().cpu().double(), self.expected.double()
        if not torch.isfinite(found).all():
            return math.inf
        return float((found - expected).abs().max() / expected.abs().max())


class _Numbers:
    """Random numbers, alike on every device: tensors on the CPU, of a dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype)

    def there(self, tensor: Tensor) -> Tensor:
        """A copy on the device, also where that is the CPU."""
        return tensor.to(self.device, copy=True)


def _norm(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    draw = _Numbers(device, dtype)
    pool, delta, weight, slots = draw(4, 3, 72), draw(6, 72), draw(72), torch.tensor([3, 1], dtype=torch.int32)
    pool_there, weight_there, slots_there = map(draw.there, (pool, weight, slots))
    total, summed, plain = (torch.empty_like(delta, device=device) for _ in range(3))
    launch_norm(
        pool_there, weight_there, 1e-5, summed, slots=slots_there, delta=draw.there(delta), total=total, gemma=True
    )
    launch_norm(pool_there, weight_there, 1e-5, plain, slots=slots_there)
    of_sum = gather_norm_reference(pool, slots, weight, 1e-5, delta, gemma=True)
    of_pool = gather_norm_reference(pool, slots, weight, 1e-5)
    return [CheckCase(total, of_sum[0]), CheckCase(summed, of_sum[1]), CheckCase(plain, of_pool[1])]


def _scatter_residual(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    draw = _Numbers(device, dtype)
    pool, delta, residual = draw(4, 3, 72), draw(6, 72), draw(6, 72)
    targets, sources = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)
    found = draw.there(pool)
    to, given = draw.there(targets), draw.there(delta)
    launch_scatter(found, to, given, sources=draw.there(sources))
    scatter_residual_reference_(pool, targets, delta, sources=sources)
    cases = [CheckCase(found.clone(), pool.clone())]
    launch_scatter(found, to, given, residual=draw.there(residual))
    scatter_residual_reference_(pool, targets, delta, residual=residual)
    return [*cases, CheckCase(found, pool)]


def _rotary(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    draw, width = _Numbers(device, dtype), 16
    rows, cos, sin, weight = draw(6, 8 * width), draw(3, width), draw(3, width), draw(width)
    cases = []
    for norm in (None, weight):
        found = draw.there(rows)
        there = None if norm is None else draw.there(norm)
        launch_rotary(found, draw.there(cos), draw.there(sin), 4, 2, HeadNorms(there, there, eps=1e-5))
        cases.append(CheckCase(found, rotary_reference(rows, cos, sin, 4, 2, HeadNorms(norm, norm, eps=1e-5))))
    return cases


def _gated(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    draw = _Numbers(device, dtype)
    rows = draw(5, 2 * 72)
    cases = []
    for gelu, reference in ((False, swiglu_reference), (True, geglu_reference)):
        found = torch.empty(5, 72, dtype=dtype, device=device)
        launch_gated(draw.there(rows), found, gelu=gelu)
        cases.append(CheckCase(found, reference(rows)))
    return cases


def _linear_cross_entropy(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    draw = _Numbers(device, dtype)
    hidden, weight, teacher, targets = draw(5, 72), draw(300, 72), draw(5, 72), torch.tensor([0, 299, 7, 128, 64])
    nll, kl = (torch.empty(5, device=device) for _ in range(2))
    there = [draw.there(each) for each in (hidden, weight, targets)]
    launch_head_loss(there[0], there[1], there[2], nll, scale=0.25, soft_cap=9.0, teacher=draw.there(teacher), kl=kl)
    # In fp32, as the kernel does not round logits.
    expected = linear_cross_entropy_reference(
        hidden.float(), weight.float(), targets, scale=0.25, soft_cap=9.0, teacher=teacher.float()
    )
    assert expected.kl is not None
    return [CheckCase(nll, expected.nll), CheckCase(kl, expected.kl)]


def _quantised_linear(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    draw = _Numbers(device, dtype)
    norm, cases = draw(96), []
    for bits in (8, 4):
        packed = pack(draw(40, 96).float(), bits)
        there = packed.to(device)
        for rows in (1, 3):
            x = draw(rows, 96)
            found = torch.empty(rows, 40, dtype=dtype, device=device)
            launch_quantised(draw.there(x), there, found, norm=draw.there(norm), eps=1e-5)
            cases.append(CheckCase(found, quantised_linear_reference(x, packed, norm, 1e-5)))
    return cases


def _context(draw: _Numbers, width: int) -> tuple[PagedContext, PagedContext]:
    """Three sequences of 21, 0 and 16 tokens in pages of 16, on the CPU and on the device."""
    pages = draw(6, 2, 2, 16, width)
    tables = torch.tensor([[4, 1], [0, 0], [2, 0]], dtype=torch.int32)
    lengths = torch.tensor([21, 0, 16], dtype=torch.int32)
    there = PagedContext(draw.there(pages), draw.there(tables), draw.there(lengths))
    return PagedContext(pages, tables, lengths), there


def _paged_attention(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    draw, width = _Numbers(device, dtype), 32
    context, there = _context(draw, width)
    qkv, starts = draw(8, (4 + 2 + 2) * width), torch.tensor([0, 3, 7, 8], dtype=torch.int32)
    found = torch.empty(8, 4 * width, dtype=dtype, device=device)
    launch_paged(draw.there(qkv), draw.there(starts), there, found, 4, width**-0.5, 0, 0.0)
    return [CheckCase(found, paged_attention_reference(qkv, starts, context, width**-0.5))]


def _decode_attention(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    draw, width = _Numbers(device, dtype), 32
    (context, there), queries = _context(draw, width), draw(3, 4 * width)
    some = torch.tensor([0, 2])  # a new token is behind one token at least: its own
    context = PagedContext(context.pages, context.tables[some], context.lengths[some])
    there = PagedContext(there.pages, draw.there(context.tables), draw.there(context.lengths))
    found = torch.empty(2, 4 * width, dtype=dtype, device=device)
    launch_decode(draw.there(queries[some]), there, found, width**-0.5, 0, 0.0)
    expected = decode_attention_reference(queries[some], context, width**-0.5)
    # The same context twice, its first tokens read once for both.
    twice = [context.tables[:1].repeat(2, 1), context.lengths[:1].repeat(2), torch.full((2,), 5, dtype=torch.int32)]
    tables, lengths, shared = (tensor.contiguous() for tensor in twice)
    members = torch.tensor([[0, 1]], dtype=torch.int32)
    teams = Teams(draw.there(members), draw.there(shared))
    together = torch.empty_like(found)
    launch_decode(
        draw.there(queries[some]),
        PagedContext(there.pages, draw.there(tables), draw.there(lengths), teams),
        together,
        width**-0.5,
    )
    of_both = decode_attention_reference(queries[some], PagedContext(context.pages, tables, lengths), width**-0.5)
    return [CheckCase(found, expected), CheckCase(together, of_both)]


def _networks() -> tuple[Networks, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    """Two networks of 12 units over 5 players, and all masks of these."""
    random = np.random.default_rng(0)
    inner, bias, outer, last = (
        (0.4 * random.standard_normal(shape)).astype(np.float32) for shape in ((2, 12, 5), (2, 12), (2, 12), (2,))
    )
    masks = (np.arange(32)[:, None] >> np.arange(5) & 1).astype(bool)
    return Networks(inner, bias, outer, last, activation="celu", output="sigmoid"), masks


def _surrogate(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    networks, masks = _networks()
    there, sent = DeviceNetworks.of(networks, device), torch.tensor(masks, device=device)
    logits = torch.empty((len(masks), 2), device=device)
    launch_logits(there, sent, logits)
    values = predict_reference(networks, masks).mean(axis=1)
    neighbours = values[np.arange(32)[:, None] ^ (1 << np.arange(5))]
    gains = np.where(masks, values[:, None] - neighbours, neighbours - values[:, None])
    return [
        CheckCase(logits, torch.from_numpy(predict_logits_reference(networks, masks))),
        CheckCase(launch_marginals(there, sent), torch.from_numpy(np.stack([gains.sum(0), (gains**2).sum(0)]))),
    ]


def _enumeration(device: torch.device, dtype: torch.dtype) -> list[CheckCase]:
    networks, masks = _networks()
    core = AllMasks(networks, np.zeros(6), device=device, pairs=True, top=1, halves=(3, 2))
    core.run(core.n_tasks)
    sizes, values = masks.sum(axis=1), predict_reference(networks, masks).mean(axis=1)
    of_size = np.eye(6)[sizes]
    both = masks[:, :, None] & masks[:, None, :]
    pairs, players = core.pairs, core.players
    assert pairs is not None
    expected = np.einsum("mij,m,ms->ijs", both, values, of_size)
    apart = ~np.eye(5, dtype=bool)  # a player with itself is summed elsewhere
    codes = core.best(3)[0]
    best = int(np.flatnonzero(sizes == 3)[predict_logits_reference(networks, masks)[sizes == 3].sum(1).argmax()])
    return [
        CheckCase(torch.from_numpy(players), torch.from_numpy((masks * values[:, None]).T @ of_size)),
        CheckCase(torch.from_numpy(pairs[apart]), torch.from_numpy(expected[apart])),
        CheckCase(torch.tensor([float(codes[0])]), torch.tensor([float(best)])),
    ]


CASES: dict[str, Callable[[torch.device, torch.dtype], list[CheckCase]]] = {
    "norm": _norm,
    "scatter_residual": _scatter_residual,
    "rotary": _rotary,
    "gated": _gated,
    "linear_cross_entropy": _linear_cross_entropy,
    "quantised_linear": _quantised_linear,
    "paged_attention": _paged_attention,
    "decode_attention": _decode_attention,
    "surrogate": _surrogate,
    "enumeration": _enumeration,
}
"""Of each operation of `kernels/checks.py`."""
