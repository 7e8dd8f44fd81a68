"""What a transformer block computes besides its products and its attention: norms, rotary embedding, gates, residuals.

States are fp32, bf16 or fp16 (float64 for tests). In 16 bits each function rounds where the models of transformers do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, gemma: bool = False) -> Tensor:
    """Root-mean-square norm of the rows of x [..., H] with weight [H] → [..., H].

        out = weight · (x / sqrt(mean(x²) + eps))          the quotient is rounded before it is multiplied (llama)
        out = (1 + weight) · x / sqrt(mean(x²) + eps)      rounded once (gemma)

    The mean is over a row, and is taken in fp32 or wider.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467).
    """
    wide = x if x.dtype == torch.float64 else x.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if gemma:
        return (unit * (1 + weight.to(wide.dtype))).to(x.dtype)
    return weight * unit.to(x.dtype)


def rms_norm_slopes_reference(
    slope: Tensor, x: Tensor, weight: Tensor, eps: float, *, base: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of y = weight · x · r, r = 1 / sqrt(mean(x²) + eps), for x [R, H] and weight [H].

        of_x = base + r · (u − x · r · mean(u · x · r)),   u = weight · slope          of_weight = Σ_rows slope · x · r

    slope, base: [R, H]; without a base, 0.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    factor = torch.rsqrt(x.to(wide).square().mean(-1, keepdim=True) + eps)
    unit, given = x.to(wide) * factor, slope.to(wide)
    along = weight.to(wide) * given
    of_x = factor * (along - unit * (along * unit).mean(-1, keepdim=True))
    if base is not None:
        of_x = base.to(wide) + of_x
    return of_x.to(x.dtype), (given * unit).sum(0).to(weight.dtype)


def add_branch_reference(
    x: Tensor, delta: Tensor, *, after: Tensor | None = None, eps: float = 0.0, gemma: bool = False, factor: float = 1.0
) -> Tensor:
    """x + factor · after(delta): [R, H] → [R, H].

    `after` [H] is the weight of a norm, as Gemma and OLMo 2 norm what each half of a block adds; None: no norm. In 16
    bits the norm, the product with the factor and the sum are rounded one by one.
    """
    branch = delta if after is None else rms_norm_reference(delta, after, eps, gemma=gemma)
    return x + (branch if factor == 1 else branch * factor)


def gather_norm_reference(
    pool: Tensor,
    slots: Tensor,
    weight: Tensor,
    eps: float,
    delta: Tensor | None = None,
    *,
    gemma: bool = False,
) -> tuple[Tensor, Tensor]:
    """States out of a pool and their norm: x [B·T, H] and rms_norm(x) [B·T, H].

        x[b·T + t] = pool[slots[b], t] (+ delta[b·T + t])

    pool: [S, T, H]; slots: int32 or int64 [B]; weight: [H]; delta: [B·T, H].
    """
    x = pool[slots.long()].flatten(0, 1)
    if delta is not None:
        x = x + delta
    return x, rms_norm_reference(x, weight, eps, gemma=gemma)


def scatter_residual_reference_(
    pool: Tensor,
    targets: Tensor,
    delta: Tensor,
    *,
    residual: Tensor | None = None,
    sources: Tensor | None = None,
) -> None:
    """Write states plus delta into slots of a pool, in place. One of `residual` and `sources` is given.

        pool[targets[b], t] = r + delta[b·T + t],    r = residual[b·T + t]  or  pool[sources[b], t]

    pool: [S, T, H]; targets, sources: int32 or int64 [B]; delta, residual: [B·T, H]. A target may be the source of its
    own row, but neither the source nor the target of another row.
    """
    stream = pool[sources.long()] if sources is not None else residual
    assert stream is not None
    states = (-1, *pool.shape[1:])
    pool.index_copy_(0, targets.long(), stream.view(states) + delta.view(states))


@dataclass(frozen=True)
class HeadNorms:
    """Norms of queries and keys before they are rotated (QK-norm).

    Attributes:
        query: weight of the queries' norm; None: none. A weight [D] norms each head by itself, as in Qwen3; one of
            [heads·D] norms all heads together, as in OLMo 2.
        key: likewise of the keys.
        eps: of both norms.
        gemma: whether they have Gemma's form (see `rms_norm_reference`).
    """

    query: Tensor | None = None
    key: Tensor | None = None
    eps: float = 0.0
    gemma: bool = False


NO_NORMS = HeadNorms()


def rotary_reference(
    x: Tensor, cos: Tensor, sin: Tensor, query_heads: int, key_heads: int, norms: HeadNorms = NO_NORMS
) -> Tensor:
    """Rotary position embedding on the first heads of each row of x [R, C] → a new tensor [R, C].

        h = h · cos[p] + rotate_half(h) · sin[p],    rotate_half(h) = (−h[D/2:], h[:D/2])

    for each head h [D] of a row at position p = r mod T: first the query heads, then the key heads. Other columns are
    copied. Heads are normed before they are rotated where `norms` say so. cos, sin: [T, D], D even. In bf16 every
    product and the sum are rounded; with cos and sin in fp32 only the result is.

    Source: Su et al., RoFormer (arXiv 2104.09864), in the half-split form of the models in transformers.
    """
    tokens, width = cos.shape
    half = width // 2
    positions = torch.arange(len(x), device=x.device) % tokens
    cos, sin = cos[positions, None], sin[positions, None]
    out = x.clone()
    for first, heads, weight in ((0, query_heads, norms.query), (query_heads, key_heads, norms.key)):
        columns = slice(first * width, (first + heads) * width)
        h = x[:, columns]
        if weight is not None:
            groups = heads * width // len(weight)
            h = rms_norm_reference(h.reshape(len(x), groups, len(weight)), weight, norms.eps, gemma=norms.gemma)
        h = h.reshape(len(x), heads, width)
        turned = torch.cat([-h[..., half:], h[..., :half]], dim=-1)
        out[:, columns] = (h * cos + turned * sin).reshape(len(x), heads * width).to(x.dtype)
    return out


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """silu(gate) · up with silu(g) = g / (1 + exp(−g)): [R, 2I], a row's gates first → [R, I].

    Source: Shazeer, GLU Variants Improve Transformer (arXiv 2002.05202).
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def swiglu_slopes_reference(slope: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient of `swiglu_reference` for gate_up [R, 2I], from a slope of its result [R, I]: [R, 2I].

    of_gate = slope · up · s · (1 + gate · (1 − s)),   s = 1 / (1 + exp(−gate));       of_up = slope · silu(gate)
    """
    wide = torch.float64 if gate_up.dtype == torch.float64 else torch.float32
    gate, up = gate_up.to(wide).chunk(2, dim=-1)
    share, given = gate.sigmoid(), slope.to(wide)
    active = (gate * share).to(gate_up.dtype).to(wide)
    return torch.cat([given * up * share * (1 + gate * (1 - share)), given * active], dim=-1).to(gate_up.dtype)


def geglu_reference(gate_up: Tensor) -> Tensor:
    """gelu(gate) · up with gelu(g) = g/2 · (1 + tanh(√(2/π) · (g + 0.044715·g³))): [R, 2I] → [R, I].

    Source: as `swiglu_reference`; this is the tanh form of GELU, as in Gemma.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate, approximate="tanh") * up
