"""Recurrences of Mamba and RWKV for training: transformers' own formulas, without its loops and their gradients.

Transformers goes through the tokens in Python and takes token t out of one tensor (`x[:, :, t]`); the gradient of each
such step is a tensor of zeros as large as the whole, so a window's backward pass grows with the square of its length.
Here Mamba's states, a linear recurrence, have a backward pass of their own: the same recurrence, backwards. RWKV's
weights fall by a factor that no token changes, so its sums are products with one matrix [T, T] a channel.
`test_recurrences.py` compares both with transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.mamba import modeling_mamba
from transformers.models.rwkv import modeling_rwkv


@contextmanager
def trainable_recurrences() -> Iterator[None]:
    """Let transformers' Mamba and RWKV blocks run on the functions of this file."""
    before = modeling_mamba.mamba_selective_scan, modeling_rwkv.rwkv_linear_attention
    modeling_mamba.mamba_selective_scan, modeling_rwkv.rwkv_linear_attention = selective_scan, wkv
    try:
        yield
    finally:
        modeling_mamba.mamba_selective_scan, modeling_rwkv.rwkv_linear_attention = before


_ROWS = 4  # windows that Mamba's scan takes at once: what it multiplies then stays in the caches


class _LinearRecurrence(torch.autograd.Function):
    """states[:, t] = decay[:, t] * states[:, t - 1] + add[:, t], from zero; all [N, T, ...]."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, add: Tensor) -> Tensor:
        states = add.clone()
        for t in range(1, add.shape[1]):
            states[:, t].addcmul_(decay[:, t], states[:, t - 1])
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        to_add = gradients[0].clone()
        for t in range(to_add.shape[1] - 2, -1, -1):
            to_add[:, t].addcmul_(decay[:, t + 1], to_add[:, t + 1])
        to_decay = torch.zeros_like(decay)
        torch.mul(to_add[:, 1:], states[:, :-1], out=to_decay[:, 1:])
        return to_decay, to_add


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool = True,
    return_last_state: bool = False,
    **_: Any,
) -> Tensor:
    """Mamba's scan: h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t], y[t] = C[t] h[t] + D x[t], gated by silu(z).

    Args:
        hidden_states: x, [batch, width, T]; `dt`, before its bias and softplus, and `z` are shaped like it.
        A: [width, N], negative.
        B: [batch, N, T], as `C` is.
        D: [width], and so is `delta_bias`.

    Returns:
        y [batch, width, T].
    """
    if return_last_state or not delta_softplus:
        raise ValueError("only whole windows, without a state behind them, and steps through a softplus")
    rows = zip(*(one.split(_ROWS) for one in (hidden_states, dt, B, C, z)), strict=True)
    return torch.cat([_scan(x, step, A, b, c, D, gate, delta_bias) for x, step, b, c, gate in rows])


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    # States and then tokens first: a step reads and writes what lies together, and no inner dimension is short.
    x, z = x.permute(2, 0, 1).contiguous(), z.permute(2, 0, 1).contiguous()
    step = functional.softplus(dt.permute(2, 0, 1).contiguous() + bias)
    decay = torch.exp(step * A.T[:, None, None])
    states = _LinearRecurrence.apply(decay, step * x * B.permute(1, 2, 0)[..., None])  # type: ignore[no-untyped-call]
    y = (states * C.permute(1, 2, 0)[..., None]).sum(0) + x * D
    return (y * functional.silu(z)).permute(1, 2, 0)


def wkv(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    state: Any = None,
    return_state: bool = False,
) -> tuple[Tensor, None]:
    """RWKV's attention: each token's mean of the values so far, weighted by exp(key) that decays with distance.

    Keys of one window and channel may lie 80 apart, which is what exp leaves of fp32.

    Args:
        time_decay: [width]; behind the next token a token's weight falls by exp(-exp(time_decay)) a step.
        time_first: [width], added to the key of the token itself.
        key: [batch, T, width], as `value` is.

    Returns:
        [batch, T, width], and no state: training hands none on.
    """
    if state is not None or return_state:
        raise ValueError("only whole windows, without a state before or behind them")
    tokens = torch.arange(key.shape[1], dtype=key.dtype)
    steps = tokens[:, None] - tokens - 1  # between a token and the one whose mean it enters; -1 is the token itself
    weights = torch.exp(-torch.exp(time_decay)[:, None, None] * steps.clamp(min=0)) * (steps >= 0)
    weights = weights + torch.exp(time_first)[:, None, None] * (steps == -1)
    height = torch.exp(key - key.detach().amax(1, keepdim=True)).permute(2, 1, 0)  # [width, T, batch]
    sums = weights @ torch.cat([height * value.permute(2, 1, 0), height], -1)
    above, below = sums.chunk(2, -1)
    return (above / below).permute(2, 1, 0), None
