"""The native step as formulas: rows through the blocks, attention over pages, in plain torch. Slow on purpose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from layercoop_fast.llama.block import ATTENTION, MLP, BlockParts, LinearRows, Norm
from layercoop_fast.llama.model import ModelParts
from layercoop_fast.runtime.executor import Executor, Rows
from layercoop_fast.runtime.pages import PAGE, PagePool


class OracleExecutor(Executor):
    """Runs rows on the model's own weights.

    Args:
        weights: of the model.
        kv_bytes: what keys and values may take, were they fp32.
        dtype: in which everything is computed.
        stored: what keys and values [.., D] become in memory.
        matrix: the weight that a linear map works with.
    """

    def __init__(
        self,
        weights: ModelParts,
        kv_bytes: int,
        dtype: torch.dtype = torch.float64,
        stored: Callable[[Tensor], Tensor] = lambda x: x,
        matrix: Callable[[nn.Linear | LinearRows], Tensor] = lambda linear: linear.weight,
    ) -> None:
        self.name = "oracle"
        self.weights = weights
        self.weight_bytes = 0
        self.dtype = dtype
        self.stored = stored
        self.matrix = matrix
        self.shape = (2, weights.first.kv_heads, PAGE, weights.first.head_dim)
        self.pages: dict[int, Tensor] = {}  # keys and values of a page [2, kv_heads, PAGE, D]
        page_bytes = 4 * 2 * weights.first.kv_heads * PAGE * weights.first.head_dim
        pool = PagePool([page_bytes] * len(weights.blocks), kv_bytes)
        super().__init__(pool, weights.head.projection.out_features, weights.max_tokens)

    def copy_page(self, layer: int, source: int, target: int) -> None:
        """Copy a page."""
        self.pages[target] = self.pages[source].clone()

    def logits(self, rows: Rows) -> Tensor:
        """Compute the rows: [K, V] in the executor's dtype."""
        weights, dtype = self.weights, self.dtype
        parent, fork = torch.from_numpy(rows.parent).long(), torch.from_numpy(rows.fork)
        count = int(rows.positions.max()) + 1
        tables = [tuple(angles.to(dtype).repeat(1, 2) for angles in rotary.table(count)) for rotary in weights.rotaries]
        x = weights.embedding_scale * weights.embedding[torch.from_numpy(rows.tokens).long()].to(dtype)
        for layer, block in enumerate(weights.blocks):
            forking = (parent >= 0) & (fork == layer)
            x[forking] = x[parent[forking]]
            if block is None:
                continue
            alive = (parent < 0) | (fork <= layer)
            halves = torch.from_numpy(rows.masks[rows.sequence, layer])
            run = torch.nonzero(alive & (halves & ATTENTION > 0))[:, 0]
            mixed = self._attention(block, x[run], rows, run, layer, tables)
            x[run] += _behind(self._linear(block.output, mixed), block.after_attention)
            run = torch.nonzero(alive & (halves & MLP > 0))[:, 0]
            normed = _norm(x[run], block.mlp_norm)
            gate, up = self._linear(block.gate, normed), self._linear(block.up, normed)
            active = nn.functional.silu(gate) if block.activation == "silu" else _gelu(gate)
            x[run] += _behind(self._linear(block.down, active * up), block.after_mlp)
        last = _norm(x[torch.from_numpy(rows.wanted).long()], weights.final_norm)
        logits = weights.head.scale * self._linear(weights.head.projection, last)
        cap = weights.head.soft_cap
        return logits if cap is None else cap * (logits / cap).tanh()

    def _linear(self, module: nn.Linear | LinearRows, x: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias.to(self.dtype)
        return nn.functional.linear(x, self.matrix(module).to(self.dtype), bias)

    def _attention(
        self, block: BlockParts, x: Tensor, rows: Rows, run: Tensor, layer: int, tables: list[tuple[Tensor, ...]]
    ) -> Tensor:
        """What attention mixes for the rows `run` [A], whose states are x [A, H]: [A, heads * D]."""
        positions = torch.from_numpy(rows.positions).long()[run]
        normed = _norm(x, block.attention_norm)
        query, key, value = (
            self._linear(module, normed).view(len(run), module.out_features // block.head_dim, block.head_dim)
            for module in (block.query, block.key, block.value)
        )
        if block.query_norm is not None and block.key_norm is not None:
            query, key = _norm(query, block.query_norm), _norm(key, block.key_norm)
        if (rotary := self.weights.rotary[layer]) >= 0:
            cos, sin = (angles[positions][:, None] for angles in tables[rotary])
            query, key = (heads * cos + _rotate_half(heads) * sin for heads in (query, key))
        numbers = rows.tables[rows.sequence[run.numpy()], layer]  # [A, P]
        for at, position in enumerate(positions.tolist()):
            page = int(numbers[at, position // PAGE])
            if page not in self.pages:
                self.pages[page] = torch.zeros(self.shape, dtype=self.dtype)
            self.pages[page][:, :, position % PAGE] = self.stored(torch.stack([key[at], value[at]]))
        return (
            torch.stack(
                [self._attend(block, query[at], numbers[at].tolist(), int(positions[at])) for at in range(len(run))]
            )
            if len(run)
            else x.new_empty(0, block.query.out_features)
        )

    def _attend(self, block: BlockParts, query: Tensor, table: list[int], position: int) -> Tensor:
        first = max(0, position - block.sliding_window + 1) if block.sliding_window else 0
        held = torch.cat([self.pages[page] for page in table[: position // PAGE + 1]], dim=2)[
            :, :, first : position + 1
        ]
        keys, values = held.repeat_interleave(len(query) // held.shape[1], dim=1)
        scores = block.scale * torch.einsum("hd,htd->ht", query, keys)
        if block.score_cap:
            scores = block.score_cap * (scores / block.score_cap).tanh()
        return torch.einsum("ht,htd->hd", scores.softmax(-1), values).reshape(-1)


def _norm(x: Tensor, norm: Norm) -> Tensor:
    return norm.scale().to(x.dtype) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)


def _behind(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else _norm(x, norm)


def _gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
