"""Llama-shaped models on the CPU: the whole token in one C++ call, over weights packed once.

    reason = fits(model)                                   # None, or why the general executor has to do
    executor = NativeExecutor(model, "int8", held, kv_bytes=1 << 30)   # the model's own weights are let go of

What is computed is what `tests/support/native_oracle.py` says; matrices are fp32, bf16, int8 or int4
(`csrc/decode/matrix.h`), keys and values fp32, bf16, fp16 or int8, all other numbers fp32.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layercoop_fast import _C
from layercoop_fast.engine.calls import BlockCall
from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.llama.block import ATTENTION, BlockParts, Norm, UnfitError, let_go
from layercoop_fast.llama.fused_head import FusedHead
from layercoop_fast.llama.model import ModelParts, find_model
from layercoop_fast.llama.native_packing import FORMATS, Packed
from layercoop_fast.masks.halves import WHOLE, Halves
from layercoop_fast.runtime.executor import Executor, Rows
from layercoop_fast.runtime.pages import PagePool

KV_FORMATS = ("fp32", "bf16", "fp16", "int8")

# How far a block's result may be from that of the model's own block, both in fp32, as a share of it.
_TOLERANCE = 1e-3


def fits(model: PreTrainedModel | Skeleton, held: Halves | None = None) -> str | None:
    """Why the native executor cannot run a model, to complete "not used because ..."; None where it can.

    Of its blocks only the halves `held` (uint8 [L]) are looked at, by default all.
    """
    skeleton = model if isinstance(model, Skeleton) else Skeleton(model)
    try:
        weights, context = find_model(skeleton, held)
        _check_blocks(skeleton, weights, context)
    except UnfitError as reason:
        return str(reason)
    return None


class NativeExecutor(Executor):
    """Runs rows in C++ over packed weights.

    Args:
        model: llama-shaped (see `fits`), on the CPU, fp32 or bf16. Its matrices are taken away: it cannot be run again.
        dtype: of the packed weights, "fp32", "bf16", "int8" or "int4".
        held: uint8 [L], the halves of blocks whose weights are held (`Halves`); of others the model may have none.
        kv_bytes: what keys and values may take together.
        kv_dtype: what they are kept as, one of `KV_FORMATS`, or "auto": as fp32 and bf16 weights are, and fp16 with
            int8 and int4 ones. What is beyond fp16 becomes its largest number.

    Raises `RequestError` for another dtype and for a model that does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel | Skeleton,
        dtype: str,
        held: Halves,
        kv_bytes: int,
        kv_dtype: str = "auto",
    ) -> None:
        if kv_dtype == "auto":
            kv_dtype = dtype if dtype in KV_FORMATS and dtype != "int8" else "fp16"
        if dtype not in FORMATS or kv_dtype not in KV_FORMATS:
            raise RequestError(
                f"weights of {dtype} with keys and values of {kv_dtype}: expected one of {', '.join(FORMATS)} "
                f"and one of {', '.join(KV_FORMATS)}"
            )
        skeleton = model if isinstance(model, Skeleton) else Skeleton(model)
        try:
            weights, context = find_model(skeleton, held)
            _check_blocks(skeleton, weights, context)
        except UnfitError as reason:
            raise RequestError(f"the native executor cannot run this model: {reason}") from None
        del context
        vocabulary = weights.head.projection.out_features
        packed = Packed(weights, dtype, let_go)
        for block, rotary, half in zip(weights.blocks, weights.rotary, held.tolist(), strict=True):
            packed.add_block(block, rotary, half)
        packed.set_ends(weights)
        skeleton.model.get_input_embeddings().weight.data = torch.empty(0)
        for left in skeleton.blocks:
            let_go([module for module in left.modules() if isinstance(module, nn.Linear)])
        self._packed = packed
        self.dtype = dtype
        self.kv_dtype = kv_dtype
        self.name = f"native {dtype}"
        self.weight_bytes = packed.nbytes
        self.half_bytes = np.array(packed.half_bytes, dtype=np.int64)
        self._page_bytes = packed.model.kv_page_bytes(kv_dtype)
        pool = PagePool([self._page_bytes if half & ATTENTION else 0 for half in held.tolist()], kv_bytes)
        # Not touched, and so not resident, before pages are: the pool hands out low numbers first.
        self._memory = np.empty(max(1, kv_bytes // self._page_bytes) * self._page_bytes, dtype=np.uint8)
        super().__init__(pool, vocabulary, weights.max_tokens, held=held)

    @property
    def threads(self) -> int:
        """Threads that compute a call."""
        return _C.num_threads()

    def logits(self, rows: Rows) -> Tensor:
        """Compute the rows: float32 [K, V]."""
        found = np.empty((len(rows.wanted), self.vocab_size), dtype=np.float32)
        self._compute(rows, logits=found)
        return torch.from_numpy(found)

    def best_tokens(self, rows: Rows) -> Tensor:
        """Compute the rows: int64 [K]; no logits leave the C++ call."""
        found = np.empty(len(rows.wanted), dtype=np.int64)
        self._compute(rows, best=found)
        return torch.from_numpy(found)

    def top_tokens(self, rows: Rows, count: int) -> tuple[Tensor, Tensor]:
        """Compute the rows: float32 and int64 [K, count]; no other logits leave the C++ call."""
        values = np.empty((len(rows.wanted), count), dtype=np.float32)
        found = np.empty((len(rows.wanted), count), dtype=np.int64)
        self._compute(rows, top=(values, found))
        return torch.from_numpy(values), torch.from_numpy(found)

    def copy_page(self, layer: int, source: int, target: int) -> None:
        """Copy a page; all blocks' pages are alike."""
        size = self._page_bytes
        self._memory[target * size : (target + 1) * size] = self._memory[source * size : (source + 1) * size]

    def _compute(
        self,
        rows: Rows,
        logits: npt.NDArray[np.float32] | None = None,
        best: npt.NDArray[np.int64] | None = None,
        top: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None = None,
    ) -> None:
        self._packed.reach(int(rows.positions.max()) + 1)
        self._packed.model.run(
            self._memory,
            self.kv_dtype,
            tokens=rows.tokens,
            positions=rows.positions,
            sequence=rows.sequence,
            parent=rows.parent,
            fork=rows.fork,
            masks=rows.masks,
            tables=rows.tables,
            wanted=rows.wanted,
            logits=logits,
            best=best,
            top=top,
        )


def _check_blocks(skeleton: Skeleton, weights: ModelParts, context: Context) -> None:
    """The first whole block of each kind comes to what the model's own does, both in fp32."""
    known = set()
    for layer, block in enumerate(weights.blocks):
        if block is None or any(parameter.is_meta for parameter in skeleton.block(layer).parameters()):
            continue
        rotary = weights.rotary[layer]
        kind = (rotary, block.sliding_window, block.after_attention is None, block.query_norm is None)
        if kind not in known:
            known.add(kind)
            difference = _difference(skeleton, weights, context, layer, block)
            if not difference < _TOLERANCE:
                raise UnfitError(f"its block {layer} computes something else (by a share of {difference:.2g})")


def _difference(skeleton: Skeleton, weights: ModelParts, context: Context, layer: int, block: BlockParts) -> float:
    """How far the native block's result is from that of the model's own, as a share of it."""
    call = context.call(layer)
    tokens, hidden = context.ids.shape[1], weights.hidden
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(tokens, hidden, generator=generator)
    module = copy.deepcopy(skeleton.block(layer)).float()
    with torch.inference_mode():
        widened = _in_fp32(call, weights, weights.rotary[layer], tokens).with_hidden(
            skeleton.convention.takes, probe[None]
        )
        expected = skeleton.convention.unwrap(module(*widened.args, **widened.kwargs))[0]
    del module
    # The block alone behind an embedding that is the probe; a head of a few directions shows what comes out, normed
    # with an epsilon so large that its size shows too.
    eps = float(expected.square().mean())
    directions = nn.Linear(hidden, min(hidden, 64), bias=False)
    with torch.inference_mode():
        directions.weight.copy_(torch.randn(directions.weight.shape, generator=generator) / hidden**0.5)
    alone = replace(
        weights,
        blocks=[block],
        rotary=[weights.rotary[layer]],
        embedding=probe,
        embedding_scale=1.0,
        final_norm=Norm(torch.ones(hidden), eps),
        head=FusedHead(directions, 1.0, None),
        tied=False,
    )
    packed = Packed(alone, "fp32", lambda linears: None)
    packed.add_block(block, weights.rotary[layer])
    packed.set_ends(alone)
    n_pages = -(-tokens // _C.KV_PAGE)
    found = np.empty((tokens, directions.out_features), dtype=np.float32)
    numbers = np.arange(tokens, dtype=np.int32)
    packed.model.run(
        np.empty(n_pages * packed.model.kv_page_bytes("fp32"), dtype=np.uint8),
        "fp32",
        tokens=numbers,
        positions=numbers,
        sequence=np.zeros(tokens, dtype=np.int32),
        parent=np.full(tokens, -1, dtype=np.int32),
        fork=np.zeros(tokens, dtype=np.int32),
        masks=np.full((1, 1), WHOLE, dtype=np.uint8),
        tables=np.arange(n_pages, dtype=np.int32).reshape(1, 1, n_pages),
        wanted=numbers,
        logits=found,
    )
    with torch.inference_mode():
        normed = expected * torch.rsqrt(expected.square().mean(-1, keepdim=True) + eps)
        wanted = directions(normed)
        return float((torch.from_numpy(found) - wanted).norm() / wanted.norm())


def _in_fp32(call: BlockCall, weights: ModelParts, rotary: int, tokens: int) -> BlockCall:
    """The call with everything in it fp32, cosines and sines from their table."""

    def widened(value: object) -> object:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.float()
        if isinstance(value, tuple) and len(value) == 2 and all(isinstance(item, Tensor) for item in value):
            if rotary < 0:
                return tuple(item.float() for item in value)
            return tuple(item.repeat(1, 2)[None] for item in weights.rotaries[rotary].table(tokens))
        return value

    return BlockCall(tuple(map(widened, call.args)), {key: widened(value) for key, value in call.kwargs.items()})
