"""Llama-shaped models on a GPU: all requests go through one captured step a token, whatever their masks.

A step of few tokens is the same work each time, on memory that holds other numbers: tokens, positions, tables of pages,
and which halves of blocks each token keeps. It is captured in a graph (`masked/queues.py`) for each number of tokens
and of pages, in powers of two, and each set of blocks that run. What one of them needs goes to the device in one
vector. Where all tokens have one mask, nothing else is read or computed than its blocks; where they differ, a token
passes a block by as one that adds 0, which costs no memory traffic, and that is what a token waits for. Several tokens
of one sequence, such as the proposals of a draft, stand in a step as if each had a sequence of its own with the pages
of theirs: every block writes all keys and values before any token attends. What tokens have in common at the beginning
of their contexts is read once for a team of them (`gpu_teams.py`), where that is much.

More tokens, prompts, go through the blocks as they are, each block for the rows that keep it. Products are the
libraries', or of int8 and int4 weights `gpu_quantised.py`'s; attention over pages, norms, rotary and SwiGLU are
`kernels/gpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.engine.calls import BlockCall, Returned, replaced_forward
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.pages import decode_attention, paged_attention
from layercoop_fast.kernels.reference.attention import PagedContext, PagePlaces
from layercoop_fast.llama.block import UnfitError
from layercoop_fast.llama.block_inputs import Rope, find_rope
from layercoop_fast.llama.fused_head import FusedHead, fused_head
from layercoop_fast.llama.gpu_block import PoolBlock
from layercoop_fast.llama.gpu_parts import DecodeBlock, Ends, PlainEnds, QuantisedEnds
from layercoop_fast.llama.gpu_quantised import BITS, QuantisedBlock
from layercoop_fast.llama.steps import Added
from layercoop_fast.masked.pool_units import pool_block
from layercoop_fast.masked.queues import Queue, queue_of
from layercoop_fast.masks.halves import WHOLE, Halves
from layercoop_fast.runtime.executor import Executor, Rows
from layercoop_fast.runtime.gpu_tables import ALIGNED, Step, StepShape, room_for, send_rows
from layercoop_fast.runtime.gpu_teams import find_teams
from layercoop_fast.runtime.pages import PAGE, PagePool

# Cosines and sines are held for at most this number of positions.
MOST_TOKENS = 16384
_CHECK_TOKENS = 32

# Steps whose graphs are held. A step has some ten nodes a block.
MOST_STEPS = 128
# Tokens of a step, where some sequence has more than one of them: a draft's proposals, not a long prompt.
MOST_ROWS = 64
# Bytes of keys and values of a block that teams must spare a step: fewer come from the chip's cache, and cost less to
# read again than a further launch.
LEAST_SAVED = 32 << 20


class GpuExecutor(Executor):
    """Runs chunks through llama-shaped blocks, keys and values in pages on the device.

    Args:
        skeleton: the model, on one device.
        kv_budget: bytes for keys and values.
        held: uint8 [L], the halves of blocks whose weights are there; by default all. Blocks are there or not.
        queue: of the device.
        dtype: "int8" or "int4" of the weights (with int4 embedding and head are int8); None: the model's own. The
            model is then on the CPU, and its matrices are taken away: it cannot be run again.
        device: where quantised weights go.

    Raises `UnfitError` for a model that is not made of such blocks and a plain head, and `RequestError` for a budget
    that does not hold one token.
    """

    name = "gpu"

    def __init__(
        self,
        skeleton: Skeleton,
        kv_budget: int,
        held: Halves | None = None,
        queue: Queue | None = None,
        *,
        dtype: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        held = np.full(skeleton.n_layers, WHOLE, dtype=np.uint8) if held is None else held
        if not set(held.tolist()) <= {0, WHOLE}:
            raise UnfitError("halves of its blocks are left out")
        self.skeleton = skeleton
        self.device = skeleton.device if device is None else device
        self.queue = queue or queue_of(self.device)
        blocks = _blocks(skeleton, held)
        self.head = _head(skeleton)
        some = next(block for block in blocks if block is not None)
        self.rope = Rope(some.rope.cos.to(self.device), some.rope.sin.to(self.device), some.rope.tokens)
        self.blocks: list[DecodeBlock | None] = list(blocks)
        self._ends: Ends = PlainEnds(skeleton, self.head)
        vocabulary, kept_as = skeleton.vocab_size, skeleton.dtype  # of weights that are about to go
        if dtype is not None:
            self._quantise(blocks, dtype)
        self.heads, self.kv_heads, self.width = some.parts.heads, some.parts.kv_heads, some.parts.head_dim
        page = 2 * self.kv_heads * PAGE * self.width * kept_as.itemsize
        kept = int((held > 0).sum())
        if kv_budget < kept * page:
            raise RequestError(
                f"a budget of {kv_budget} bytes for keys and values holds no token: the smallest that works is "
                f"{kept * page} bytes ({PAGE} tokens)"
            )
        super().__init__(PagePool([page] * skeleton.n_layers, kv_budget), vocabulary, self.rope.tokens, held=held)
        pages = kv_budget // page
        # One page more than are ever handed out: what is computed for nobody is written there.
        self.pages = torch.zeros(pages + 1, 2, self.kv_heads, PAGE, self.width, dtype=kept_as, device=self.device)
        self._nobody = pages
        self._vectors: dict[StepShape, Tensor] = {}
        self._name = object()  # the queue is everybody's
        self._steps: set[Hashable] = set()
        self._logits: dict[int, Tensor] = {}
        if dtype is None:
            own = {each.data_ptr(): each for each in skeleton.model.parameters() if not each.is_meta}
            self.weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in own.values())

    def _quantise(self, blocks: list[PoolBlock | None], dtype: str) -> None:
        """Pack the blocks one after the other, then embedding and head; `UnfitError` where a width forbids it."""
        self.name = f"gpu {dtype}"
        half_bytes = np.zeros((len(blocks), 2), dtype=np.int64)
        self.blocks = []
        for layer, block in enumerate(blocks):
            packed = None if block is None else QuantisedBlock(block, BITS[dtype], self.device)
            half_bytes[layer] = 0 if packed is None else packed.half_bytes
            self.blocks.append(packed)
        self._ends = ends = QuantisedEnds(self.skeleton, self.head, self.device)
        self.half_bytes = half_bytes
        self.weight_bytes = ends.nbytes + int(half_bytes.sum())

    @property
    def threads(self) -> int:
        """None of the CPU's computes a call."""
        return 0

    def copy_page(self, layer: int, source: int, target: int) -> None:
        """Copy a page of a block, whole."""
        self.pages[target] = self.pages[source]

    def logits(self, rows: Rows) -> Tensor:
        """Compute the rows: float32 [K, V]."""
        wanted = self.queue.send(torch.from_numpy(rows.wanted)).long()
        few = len(rows.tokens) <= max(len(rows.sequences), MOST_ROWS)
        if few and (rows.parent < 0).all():
            return self._by_step(rows)[wanted]
        return self._ends.score(self._extend(rows)[wanted])

    def _by_step(self, rows: Rows) -> Tensor:
        """Rows without parents by a step that comes back: float32 [R, V], valid until the next one."""
        count = len(rows.tokens)
        tables = rows.tables[rows.sequence]
        teams = find_teams(tables, rows.positions)
        if teams is not None and teams.saved * float(self.pool.page_bytes[0]) / PAGE < LEAST_SAVED:
            teams = None
        shape = StepShape(
            _power(count),
            self.n_layers,
            max(ALIGNED, _power(tables.shape[2])),
            0 if teams is None else _power(teams.members.shape[1]),
        )
        host = torch.zeros(room_for(Step.sizes(shape)), dtype=torch.int32)
        step = Step.of(host, shape)
        step.pages.fill_(self._nobody)
        step.tables.fill_(-1)
        step.tokens[:count] = torch.from_numpy(rows.tokens)
        step.positions[:count] = torch.from_numpy(rows.positions)
        step.lengths[:count] = torch.from_numpy(rows.positions + 1)
        step.slots[:count] = torch.from_numpy(rows.positions % PAGE)
        step.tables[:count, :, : tables.shape[2]] = torch.from_numpy(tables)
        if teams is not None:
            step.members.fill_(-1)
            step.members[:, : teams.members.shape[1]] = torch.from_numpy(teams.members)
            step.shared[:, :count] = torch.from_numpy(teams.shared)
        into = tables[np.arange(count), :, rows.positions // PAGE]
        step.pages[:, :count] = torch.from_numpy(np.where(into < 0, self._nobody, into).T.copy())
        masks = rows.masks[rows.sequence].astype(np.int32)
        step.keeps[0, :, :count] = torch.from_numpy((masks & 1).T)
        step.keeps[1, :, :count] = torch.from_numpy((masks >> 1).T)
        if shape not in self._vectors:
            self._vectors[shape] = torch.empty_like(host, device=self.device)
        size = shape.tokens
        if size not in self._logits:
            self._logits[size] = torch.empty(size, self.vocab_size, device=self.device)
        there = Step.of(self._vectors[shape].copy_(self.queue.send(host)), shape)
        alike = bool((rows.masks == rows.masks[0]).all())
        ran = np.bitwise_or.reduce(rows.masks, axis=0)
        key: Hashable = (self._name, shape, alike, ran.tobytes())
        if key not in self._steps and len(self._steps) >= MOST_STEPS:
            self.queue.forget()
            self._steps.clear()
        self._steps.add(key)
        self.queue.run(key, lambda: self._step(there, ran, self._logits[size], alike=alike))
        return self._logits[size]

    def _step(self, step: Step, ran: Halves, out: Tensor, *, alike: bool) -> None:
        """The step itself; `ran` says which halves any token keeps, `alike` that all keep them."""
        hidden = self._ends.embed(step.tokens.long())
        positions = step.positions.long()
        cos, sin = self.rope.cos[positions], self.rope.sin[positions]
        added: Added | None = None
        for layer, halves in enumerate(ran.tolist()):
            block = self.blocks[layer]
            if block is None:
                continue
            attention, mlp = (None, None) if alike else step.keeps[:, layer]
            if halves & 1:
                into = PagePlaces(self.pages, step.pages[layer], step.slots)
                hidden, qkv = block.normed_heads(hidden, added, cos, sin, into)
                context = PagedContext(self.pages, step.tables[:, layer], step.lengths, step.teams(layer))
                mixed = decode_attention(qkv[:, : self.heads * self.width], context, block.parts.scale)
                added = Added(block.behind_attention(mixed), attention)
            if halves & 2:
                hidden, delta = block.normed_mlp(hidden, added)
                added = Added(delta, mlp)
        out.copy_(self._ends.score(hidden if added is None else added.onto(hidden)))

    def _extend(self, rows: Rows) -> Tensor:
        """Any rows, block by block: the states [R, H] behind the last one."""
        count = len(rows.tokens)
        ids, positions, tables = send_rows(rows, self.n_layers, self.queue.send)
        hidden = self._ends.embed(ids.long())
        cos, sin = self.rope.cos[positions.long()], self.rope.sin[positions.long()]
        for block, some in zip(self.blocks, tables, strict=True):
            if some.born.numel():
                to, source = some.born.long()
                hidden[to] = hidden[source]
            if block is None:
                continue
            if len(some.attending):
                at = some.attending.long()
                every = len(at) == count
                own, own_cos, own_sin = (hidden, cos, sin) if every else (hidden[at], cos[at], sin[at])
                into = PagePlaces(self.pages, some.pages, some.slots)
                _, qkv = block.normed_heads(own, None, own_cos, own_sin, into)
                context = PagedContext(self.pages, some.tables, some.lengths)
                mixed = paged_attention(qkv, some.starts, context, some.longest, block.parts.scale)
                delta = block.behind_attention(mixed)
                hidden = hidden + delta if every else hidden.index_add_(0, at, delta)
            if len(some.feeding):
                at = some.feeding.long()
                every = len(at) == count
                _, delta = block.normed_mlp(hidden if every else hidden[at])
                hidden = hidden + delta if every else hidden.index_add_(0, at, delta)
        return hidden


def _blocks(skeleton: Skeleton, held: Halves) -> list[PoolBlock | None]:
    """The blocks that are held, for all positions that there are."""
    if not skeleton.one_device:
        raise UnfitError("it lies on several devices")
    tokens = min(skeleton.max_tokens or MOST_TOKENS, MOST_TOKENS)
    context = skeleton.context(
        torch.arange(min(_CHECK_TOKENS, tokens), device=skeleton.device)[None] % skeleton.vocab_size
    )
    if not torch.equal(context.embedding, skeleton.model.get_input_embeddings()(context.ids)):
        raise UnfitError("it does more to its embedding than look it up")
    calls = _calls(skeleton, tokens)
    blocks: list[PoolBlock | None] = []
    first: Rope | None = None
    for layer in range(skeleton.n_layers):
        blocks.append(None)
        if not held[layer]:
            continue
        found = pool_block(skeleton.blocks[layer], context.call(layer), skeleton.convention)
        if isinstance(found, str):
            raise UnfitError(f"block {layer}: {found}")
        short, found.rope = found.rope, find_rope(calls[layer], skeleton.convention, found.parts)
        if found.rope.sliding_window:
            raise UnfitError("its sliding window is shorter than its texts may be")
        first = first or found.rope
        alike = torch.equal(found.rope.cos, first.cos) and torch.equal(found.rope.sin, first.sin)
        if not alike or not torch.equal(found.rope.cos[: short.tokens], short.cos):
            raise UnfitError("its rotary embedding depends on the block or on the length of the text")
        blocks[-1] = found
    if not any(block is not None and block.holds for block in blocks):
        raise UnfitError("its blocks share weights")
    return blocks


class _LeftError(Exception):
    """The model's forward is left on purpose: all its blocks have been handed their arguments."""


def _calls(skeleton: Skeleton, tokens: int) -> list[BlockCall]:
    """What the blocks are handed for one text of `tokens` tokens; neither block nor head is computed."""
    convention = skeleton.convention
    captured: list[BlockCall] = []

    def recorder(index: int) -> Callable[..., Returned]:
        def record(*args: Any, **kwargs: Any) -> Returned:
            call = BlockCall(args, kwargs)
            captured.append(call.with_hidden(convention.takes, None))
            if index == skeleton.n_layers - 1:
                raise _LeftError
            return convention.wrap(call.hidden(convention.takes))

        return record

    ids = torch.zeros(1, tokens, dtype=torch.int64, device=skeleton.device)
    with torch.inference_mode(), replaced_forward(skeleton.blocks, recorder), suppress(_LeftError):
        skeleton.model(input_ids=ids, use_cache=False)
    return captured


def _head(skeleton: Skeleton) -> FusedHead:
    ids = torch.arange(4, device=skeleton.device)[None] % skeleton.vocab_size
    head = fused_head(skeleton, ids, own_norm=True)
    if head is None or head.norm is None:
        raise UnfitError("its head is more than a norm and a linear map")
    return head


def _power(size: int) -> int:
    """The smallest power of two from `size` on."""
    return 1 << max(size - 1, 0).bit_length()
