"""Linear maps and blocks of int8 or int4 weights on a GPU, for steps of a few tokens that wait for weights alone.

    x → x · Ŵᵀ,    or with the norm before it  rms_norm(x) · Ŵᵀ      Ŵ: quantised in groups of 32 columns, as on the CPU

Weights are quantised on the CPU by `kernels/quantise.py`, as the native executor's are, so both multiply by the same
numbers; a model made from a GGUF file of Q8_0 or Q4_1 blocks keeps its own. The GPU never holds others: what it needs
is a quarter or an eighth of fp32. Up to 64 rows go through `kernels/gpu/gemv.py` by sixteens, with the norm in the same
kernel; more (prompts) through the library's product, of weights widened a piece at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layercoop_fast.kernels.quantise import pack
from layercoop_fast.kernels.quantised_linear import quantised_linear
from layercoop_fast.kernels.reference.attention import PagePlaces
from layercoop_fast.kernels.reference.quantised import GROUP, PackedWeight
from layercoop_fast.kernels.rms_norm import rms_norm
from layercoop_fast.llama.block import LinearRows, Norm, UnfitError, let_go
from layercoop_fast.llama.gpu_block import PoolBlock, what_is_added
from layercoop_fast.llama.steps import Added, gate_rows, rotate_heads

BITS = {"int8": 8, "int4": 4}
# Up to this number of rows, reading the packed weights once for every sixteen rows costs less than widening them once.
_FEW_ROWS = 64
# Output columns whose weights are widened at a time.
_PIECE = 4096


class QuantisedMap:
    """Linear maps of one input as one, their weights [O, K] quantised.

    Args:
        linears: on the CPU, fp32, bf16 or fp16.
        bits: 8 or 4.
        device: where the packed weights go.

    Raises `UnfitError` where K is no multiple of 32.
    """

    def __init__(self, linears: Sequence[nn.Linear | LinearRows], bits: int, device: torch.device) -> None:
        if linears[0].in_features % GROUP:
            raise UnfitError(f"a product of {linears[0].in_features} columns does not fall into groups of {GROUP}")
        parts = [pack(linear.weight.detach(), bits) for linear in linears]
        minimums = [part.minimum for part in parts if part.minimum is not None]
        self.weight = PackedWeight(
            torch.cat([part.values for part in parts]).to(device),
            torch.cat([part.scale for part in parts]).to(device),
            torch.cat(minimums).to(device) if minimums else None,
        )
        self.bias: Tensor | None = None
        if any(linear.bias is not None for linear in linears):
            biases = [(linear.bias, linear.weight.new_zeros(linear.out_features)) for linear in linears]
            self.bias = torch.cat([zeros if bias is None else bias.detach() for bias, zeros in biases]).to(device)

    @property
    def nbytes(self) -> int:
        """What a product reads."""
        weight = self.weight
        return sum(part.nbytes for part in (weight.values, weight.scale, weight.minimum) if part is not None)

    def __call__(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        """Norm, where one is given, and multiply: [R, K] → [R, O] in x's dtype."""
        if norm is not None and norm.gemma:  # the product's kernel knows llama's form alone
            x, norm = rms_norm(x, norm.weight, norm.eps, gemma=True), None
        if len(x) <= _FEW_ROWS:
            scaled, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            out = quantised_linear(x, self.weight, scaled, eps)
        else:
            x = x if norm is None else rms_norm(x, norm.weight, norm.eps)
            pieces = range(0, len(self.weight.values), _PIECE)
            out = torch.cat([F.linear(x, self._rows(slice(first, first + _PIECE), x.dtype)) for first in pieces], dim=1)
        return out if self.bias is None else out + self.bias

    def _rows(self, some: slice | Tensor, dtype: torch.dtype) -> Tensor:
        weight = self.weight
        part = PackedWeight(
            weight.values[some], weight.scale[some], None if weight.minimum is None else weight.minimum[some]
        )
        return part.unpack().to(dtype)

    def embed(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of the weights that tokens int64 [N] name: [N, K]."""
        return self._rows(tokens, dtype)


class QuantisedBlock:
    """A llama-shaped block of quantised weights: what `PoolBlock` does in generation, on a device.

    Args:
        block: on the CPU, checked; the memory of its matrices is given back.
        bits: of the weights, 8 or 4.
        device: where it goes.
    """

    def __init__(self, block: PoolBlock, bits: int, device: torch.device) -> None:
        parts = block.parts
        self.parts = replace(
            parts,
            attention_norm=norm_on(parts.attention_norm, device),
            query_norm=norm_on(parts.query_norm, device),
            key_norm=norm_on(parts.key_norm, device),
            after_attention=norm_on(parts.after_attention, device),
            mlp_norm=norm_on(parts.mlp_norm, device),
            after_mlp=norm_on(parts.after_mlp, device),
        )
        self._qkv = QuantisedMap([parts.query, parts.key, parts.value], bits, device)
        self._output = QuantisedMap([parts.output], bits, device)
        self._gate_up = QuantisedMap([parts.gate, parts.up], bits, device)
        self._down = QuantisedMap([parts.down], bits, device)
        let_go(parts.layers)

    @property
    def half_bytes(self) -> tuple[int, int]:
        """What the products of its attention and its MLP read."""
        return self._qkv.nbytes + self._output.nbytes, self._gate_up.nbytes + self._down.nbytes

    def normed_heads(
        self, hidden: Tensor, added: Added | None, cos: Tensor, sin: Tensor, into: PagePlaces
    ) -> tuple[Tensor, Tensor]:
        """As `PoolBlock.normed_heads`; the product's kernel has the norm: [R, H], [R, (heads + 2·kv_heads)·D]."""
        total = hidden if added is None else added.onto(hidden)
        return total, rotate_heads(self.parts, self._qkv(total, self.parts.attention_norm), cos, sin, into)

    def behind_attention(self, mixed: Tensor) -> Tensor:
        """What attention adds, of what it mixed: [R, heads·D] → [R, H]."""
        return what_is_added(self.parts, self._output(mixed), self.parts.after_attention)

    def normed_mlp(self, hidden: Tensor, added: Added | None = None) -> tuple[Tensor, Tensor]:
        """The stream with what is to be added to it, and what the MLP adds then: both [R, H]."""
        total = hidden if added is None else added.onto(hidden)
        inner = gate_rows(self.parts, self._gate_up(total, self.parts.mlp_norm))
        return total, what_is_added(self.parts, self._down(inner), self.parts.after_mlp)


def norm_on(norm: Norm | None, device: torch.device) -> Norm | None:
    """A norm with its weight on a device; None stays None."""
    return None if norm is None else replace(norm, weight=norm.weight.to(device))
