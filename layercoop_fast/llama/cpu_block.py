"""A llama-shaped block on the CPU: joint projections, and C++ for all that is no product.

    fast.run([pool[2], pool[5]], [pool[2], pool[7]])         # stored states, in place or not, without a copy

It computes the formula of `block.py`; either half can be run alone. What a window comes to does not depend on the
other windows, bit for bit: each kernel works row by row or window by window in a fixed order, and so do torch's
products from some number of rows on (`kernels/rows.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.attention import causal_attention
from layercoop_fast.kernels.rms_norm import add_rms_norm
from layercoop_fast.kernels.rows import MIN_ROWS, Product
from layercoop_fast.llama.block import BlockParts, Half
from layercoop_fast.llama.block_inputs import Rope, read_rope
from layercoop_fast.llama.projections import Projection
from layercoop_fast.llama.steps import add_half, gate_rows, norm_rows, rotate_heads
from layercoop_fast.spans import ATTENTION, BLOCK_REST, timed


@dataclass
class Workspace:
    """Memory for activations that fast blocks share. It grows as needed and is never given back.

    For R rows (tokens of one call) it holds R · (2H + max(C, 2I) + max(A, I)) numbers, H being the hidden width, C and
    A the widths of the joint projection and of the attention's output, I the MLP's.

    Attributes:
        proven: kinds of blocks whose fast form was compared in fp32 (`llama/fast_blocks.py`).
    """

    proven: set[Hashable] = field(default_factory=set)
    _buffers: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    def matrix(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """A matrix [rows, columns] with any content; it is valid until the next call with this name."""
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < rows * columns:
            buffer = self._buffers[name, dtype] = torch.zeros(rows * columns, dtype=dtype)
        return buffer[: rows * columns].view(rows, columns)


@dataclass(frozen=True)
class _Batch:
    """States of one call: their rows [r, H] where they are stored, and their places among all rows of the call."""

    sources: list[Tensor]
    targets: list[Tensor]
    spans: list[slice]
    rows: int


class FastBlock:
    """A llama-shaped block, computed another way; `llama/fast_blocks.py` makes and checks it.

    Args:
        parts: of the block; the weights of the joint projections become views of new memory.
        rope: of the windows that it will be run on, all of T tokens; where they are trees, a state has all of them, or
            the first of them.
        workspace: shared with other blocks that run one after another, never at the same time.
    """

    def __init__(self, parts: BlockParts, rope: Rope, workspace: Workspace) -> None:
        self.parts = parts
        self.rope = rope
        self.workspace = workspace
        self.dtype = parts.dtype
        self.qkv = Projection([parts.query, parts.key, parts.value])
        self.output = Projection([parts.output])
        self.gate_up = Projection([parts.gate, parts.up])
        self.down = Projection([parts.down])

    def extend(self, call: BlockCall, convention: Convention, positions: Tensor | None = None) -> None:
        """Go on to other windows, called as before: trees at `positions` (int64 [W, T]), or shorter texts.

        Nothing is checked again.
        """
        rope = read_rope(call, convention, self.parts.head_dim, self.dtype, positions)
        self.rope = replace(rope, sliding_window=self.rope.sliding_window)

    @property
    def holds(self) -> bool:
        """Whether its joint weights are still whole: a block that shares some with a later one has lost them to it."""
        return all(projection.holds for projection in (self.qkv, self.output, self.gate_up, self.down))

    @property
    def bytes_a_row(self) -> int:
        """Bytes of workspace that a row (token) of a call takes."""
        parts = self.parts
        mixed = parts.heads * parts.head_dim
        numbers = 2 * parts.hidden + max(self.qkv.out_features, 2 * parts.inner) + max(mixed, parts.inner)
        return numbers * self.dtype.itemsize

    def products(self, half: Half | None = None, *, some_rows: bool = False) -> frozenset[Product]:
        """The products that `run` makes of all rows; with `some_rows` also those that it makes of some."""
        attention = {self.qkv.product(), self.output.product()}
        if some_rows:
            attention |= {self.qkv.product(slice(0, 1)), self.qkv.product(slice(1, 3))}
        feed = {self.gate_up.product(), self.down.product()}
        return frozenset(attention | feed if half is None else attention if half == "attn" else feed)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Tokens T and hidden width H of the states it takes."""
        return self.rope.tokens, self.parts.hidden

    def __call__(self, hidden: Tensor) -> Tensor:
        """Run the block on hidden [W, T, H]; returns a new tensor."""
        out = torch.empty_like(hidden)
        self.run([hidden], [out])
        return out

    def run(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        half: Half | None = None,
        rows: Tensor | None = None,
    ) -> None:
        """Run the block, or one half of it, on states [W, T, H] (contiguous; W may differ), each into its target.

        A target may be its own source. Both halves one after the other are the block, bit for bit. With `rows` (int64
        [S], ascending) only these positions of each window are written, to the bits that they have without; what
        attention does not need is then computed for them alone. Raises `RequestError` for a state of another shape,
        layout or dtype.
        """
        batch = self._batch(sources, targets)
        if batch.rows == 0:
            return
        with timed(BLOCK_REST):
            if rows is None:
                self._run(batch, half)
            else:
                self._run_rows(batch, half, rows)

    def _run(self, batch: _Batch, half: Half | None) -> None:
        normed = self._matrix("normed", batch.rows, self.parts.hidden)
        if half != "mlp":
            self._attend(batch, normed)
        self._add(batch.sources, batch.targets, batch.spans, batch.rows, half)

    def _run_rows(self, batch: _Batch, half: Half | None, rows: Tensor) -> None:
        tokens, hidden = self.state_shape
        windows = torch.arange(0, batch.rows, tokens)
        index = (windows[:, None] + rows).reshape(-1)
        places = [(windows[: len(source) // tokens, None] + rows).reshape(-1) for source in batch.sources]
        count = len(index)
        stream = torch.cat([source[place] for source, place in zip(batch.sources, places, strict=True)])
        if half != "mlp":
            self._attend(batch, self._matrix("normed", batch.rows, hidden), (rows, index))
        total = torch.empty_like(stream)
        self._add([stream], [total], [slice(0, count)], count, half)
        first = 0
        for target, place in zip(batch.targets, places, strict=True):
            target[place] = total[first : first + len(place)]
            first += len(place)

    def _add(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        spans: Sequence[slice],
        rows: int,
        half: Half | None,
    ) -> None:
        """Add what the halves come to, of rows that attention has mixed in "inner" before, unless half is "mlp"."""
        parts = self.parts
        normed, delta = (self._matrix(name, rows, parts.hidden) for name in ("normed", "delta"))
        if half == "mlp":
            for source, span in zip(sources, spans, strict=True):
                norm_rows(parts.mlp_norm, source, normed[span])
        else:
            self.output(self._matrix("inner", rows, parts.heads * parts.head_dim), out=delta)
            for source, target, span in zip(sources, targets, spans, strict=True):
                self._add_attention(source, target, delta[span], None if half else normed[span])
            sources = targets
        if half != "attn":
            self._feed(rows, normed, delta)
            for source, target, span in zip(sources, targets, spans, strict=True):
                add_half(source, delta[span], parts.after_mlp, parts.factor, target)

    def _add_attention(self, source: Tensor, target: Tensor, delta: Tensor, normed: Tensor | None) -> None:
        """Add attention's result delta [R, H] to the stream, and norm the sum for the MLP where it goes on to that."""
        parts = self.parts
        norm, after = parts.mlp_norm, parts.after_attention
        if norm is not None and normed is not None and after is None and parts.factor == 1:
            add_rms_norm(source, delta, norm.weight, norm.eps, gemma=norm.gemma, out=normed, total=target)
            return
        add_half(source, delta, after, parts.factor, target)
        if normed is not None:
            norm_rows(norm, target, normed)

    def _attend(self, batch: _Batch, normed: Tensor, some: tuple[Tensor, Tensor] | None = None) -> None:
        """Write what attention mixes for every row of the states, before its output projection, to "inner" [R, A].

        Or for some rows alone: positions [S] of every window, and the same [W·S] among all rows.
        """
        parts, rope = self.parts, self.rope
        for source, span in zip(batch.sources, batch.spans, strict=True):
            norm_rows(parts.attention_norm, source, normed[span])
        asked, index = (None, None) if some is None else some
        qkv = self._project(normed, index)[: batch.rows]
        pattern = min(len(rope.cos), len(batch.sources[0]))  # of trees, those of the windows that a state has
        rotate_heads(parts, qkv, rope.cos[:pattern], rope.sin[:pattern])
        positions = None if rope.positions is None else rope.positions[:pattern]
        rows = batch.rows if index is None else len(index)
        mixed = self._matrix("inner", rows, parts.heads * parts.head_dim)
        with timed(ATTENTION):
            causal_attention(
                qkv,
                rope.tokens,
                parts.heads,
                parts.kv_heads,
                parts.scale,
                asked=asked,
                positions=positions,
                sliding_window=rope.sliding_window,
                cap=parts.score_cap,
                out=mixed[:rows],
            )

    def _project(self, normed: Tensor, index: Tensor | None) -> Tensor:
        """Queries, keys and values of all rows; where `index` is given, queries of these rows alone."""
        wide = self._matrix("wide", len(normed), self.qkv.out_features)
        if index is None:
            return self.qkv(normed, out=wide)
        queries = self.parts.heads * self.parts.head_dim
        self.qkv(normed, out=wide[:, queries:], maps=slice(1, 3))
        asking = normed[index]
        padded = torch.cat([asking, asking[:1].expand(max(MIN_ROWS - len(asking), 0), -1)])
        wide[index, :queries] = self.qkv(padded, out=padded.new_empty(len(padded), queries), maps=slice(0, 1))[
            : len(index)
        ]
        return wide

    def _feed(self, rows: int, normed: Tensor, delta: Tensor) -> None:
        """What the MLP adds to the states, from their normed rows, into delta."""
        gate_up = self.gate_up(normed, out=self._matrix("wide", rows, self.gate_up.out_features))
        inner = self._matrix("inner", rows, self.parts.inner)
        gate_rows(self.parts, gate_up[:rows], out=inner[:rows])
        self.down(inner, out=delta)

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        # The content of padding rows does not matter: rows of a product do not depend on each other.
        return self.workspace.matrix(name, max(rows, MIN_ROWS), columns, self.dtype)

    def _batch(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> _Batch:
        states = [self._rows(state) for state in sources]
        results = [self._rows(state) for state in targets]
        if [state.shape for state in states] != [result.shape for result in results]:
            raise RequestError("fast block: expected as many targets as sources, of the same shapes")
        sizes = {len(state) for state in states}
        if self.rope.positions is not None and (len(sizes) > 1 or max(sizes, default=0) > len(self.rope.cos)):
            raise RequestError("fast block: expected states of the same windows, of those it was made for")
        spans, rows = [], 0
        for state in states:
            spans.append(slice(rows, rows + len(state)))
            rows += len(state)
        return _Batch(states, results, spans, rows)

    def _rows(self, state: Tensor) -> Tensor:
        tokens, hidden = self.state_shape
        if state.dim() != 3 or tuple(state.shape[1:]) != (tokens, hidden) or not state.is_contiguous():
            raise RequestError(
                f"fast block: expected contiguous states [W, {tokens}, {hidden}], got {list(state.shape)} "
                f"with strides {list(state.stride())}"
            )
        if state.dtype != self.dtype or state.device.type != "cpu":
            raise RequestError(f"fast block: expected {self.dtype} on the CPU, got {state.dtype} on {state.device}")
        return state.view(-1, hidden)
