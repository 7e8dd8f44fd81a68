"""Every Triton kernel against its oracle, torch.compile of it, and a library where one has the same operation."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from chips import Bench, raise_again, seconds
from parts import Rows
from torch import Tensor

from layercoop_fast.kernels.gpu.tuning import tune
from layercoop_fast.kernels.linear_cross_entropy import by_tiles, linear_cross_entropy
from layercoop_fast.kernels.pages import decode_attention, paged_attention
from layercoop_fast.kernels.pool import gather_add_norm, gather_norm, scatter_residual_
from layercoop_fast.kernels.quantise import pack
from layercoop_fast.kernels.quantised_linear import quantised_linear
from layercoop_fast.kernels.reference.attention import (
    PagedContext,
    causal_attention_reference,
    decode_attention_reference,
    paged_attention_reference,
)
from layercoop_fast.kernels.reference.blocks import (
    gather_norm_reference,
    geglu_reference,
    rotary_reference,
    scatter_residual_reference_,
    swiglu_reference,
)
from layercoop_fast.kernels.reference.head import linear_cross_entropy_reference
from layercoop_fast.kernels.reference.quantised import quantised_linear_reference
from layercoop_fast.kernels.rotary import rotary_
from layercoop_fast.kernels.swiglu import geglu, swiglu

Work = Callable[[], Any]
_LARGE_PAGE = 256


@dataclass(frozen=True)
class Sizes:
    """Shapes of a model's block: windows of a state × states of a batch, tokens, and what the config says."""

    windows: int
    tokens: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    width: int
    words: int
    sequences: int
    context: int
    page: int = 16

    @property
    def rows(self) -> int:
        """Rows of a call."""
        return self.windows * self.tokens


FULL = Sizes(128, 128, 4096, 14336, 32, 8, 128, 128256, 32, 2048)
TINY = Sizes(2, 3, 32, 16, 2, 1, 16, 33, 2, 9, page=4)


@dataclass(frozen=True)
class Row:
    """One operation: its ways, and what it moves and computes."""

    name: str
    shape: str
    ways: dict[str, Work]
    bytes: int
    flops: int = 0
    tolerance: float = 2**-5
    compared: dict[str, Work] = field(default_factory=dict)
    """What to compare instead of a way's own result, where a call changes what it is given."""
    product: Work | None = None
    """The matrix product alone, of what holds one and more."""


def rows(bench: Bench) -> Rows:
    """A row for each way of each operation; what all ways of one are compared with is the oracle's result."""
    for make in _ROWS:
        name = make.__name__.strip("_")
        try:
            row = make(TINY if bench.tiny else FULL, bench.device, bench.dtype, bench.compiler)
            expected = _values(row.ways["oracle"]())
        except Exception as problem:  # its other ways cannot be compared
            yield name, partial(raise_again, problem)
            continue
        for way in row.ways:
            yield f"{row.name} {row.shape}: {way}", partial(_way, row, way, expected, bench)
        if row.product is not None:
            yield f"{row.name} {row.shape}: its product alone", partial(_alone, row, row.product, bench)


def _way(row: Row, way: str, expected: Tensor, bench: Bench) -> dict[str, Any]:
    """Microseconds of a way, once its result was found to be the oracle's."""
    work = row.ways[way]
    tuned = tune(work) if way == "ours" and bench.device.type == "cuda" else {}
    error = _difference(_values(row.compared.get(way, work)()), expected)
    if not error <= row.tolerance:
        raise AssertionError(f"differs from the oracle by {error:.2e}")
    return _figures(seconds(work), row, bench) | {"difference": error, "tuned": tuned}


def _alone(row: Row, product: Work, bench: Bench) -> dict[str, Any]:
    return _figures(seconds(product), row, bench)


def _figures(time: float, row: Row, bench: Bench) -> dict[str, Any]:
    figures = {"µs": time * 1e6, "GB/s": row.bytes / time / 1e9}
    if row.flops:
        figures["TFLOP/s"] = row.flops / time / 1e12
    if bench.peak is not None:
        figures["share of peak"] = max(row.bytes / bench.peak.bandwidth, row.flops / bench.peak.flops) / time
    return figures


def _values(result: Any) -> Tensor:
    """The tensor that ways are compared by, in fp32."""
    tensor = result[-1] if isinstance(result, tuple) else result
    return tensor.detach().float().clone()


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.reshape(-1) - expected.reshape(-1)).norm() / expected.norm().clamp_min(1e-30))


def _compiled(reference: Callable[..., Any], compiler: str | None) -> Callable[..., Any]:
    return reference if compiler is None else torch.compile(reference, dynamic=False, backend=compiler)


def _liger(module: str) -> Any:
    """An operation of liger-kernel, None where that is not installed."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    try:
        return importlib.import_module(f"liger_kernel.ops.{module}")
    except ImportError:  # a version that calls it otherwise
        return None


def _varlen() -> Any:
    """torch's attention by block tables (from 2.13 on), None where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if torch.cuda.is_available() and "block_table" in signature(varlen_attn).parameters else None


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.float32).to(dtype)


def _swiglu(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    return _gated("swiglu", s, device, dtype, compiler)


def _geglu(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    return _gated("geglu", s, device, dtype, compiler)


def _gated(name: str, s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    x = _random(device, dtype, s.rows, 2 * s.inner)
    ours, oracle = (swiglu, swiglu_reference) if name == "swiglu" else (geglu, geglu_reference)
    compiled = _compiled(oracle, compiler)
    ways: dict[str, Work] = {
        "ours": lambda: ours(x),
        "oracle": lambda: oracle(x),
        "torch.compile": lambda: compiled(x),
    }
    if (liger := _liger(name)) is not None:
        a, b = (half.contiguous() for half in x.chunk(2, dim=1))
        apart = liger.LigerSiLUMulFunction if name == "swiglu" else liger.LigerGELUMulFunction
        ways["liger, two tensors"] = lambda: apart.apply(a, b)
        if (joint := getattr(liger, "LigerFusedGateUpSiLUMulFunction", None)) is not None:
            ways["liger"] = lambda: joint.apply(x)
    return Row(name, f"[{s.rows}, 2·{s.inner}]", ways, bytes=3 * s.rows * s.inner * dtype.itemsize)


def _pool(s: Sizes, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A pool of states twice as many as are used, of one window each, and the slots of every other one."""
    pool = _random(device, dtype, 2 * s.windows, s.tokens, s.hidden)
    return pool, torch.arange(0, 2 * s.windows, 2, dtype=torch.int32, device=device)


def _norm(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    pool, slots = _pool(s, device, dtype)
    weight = _random(device, dtype, s.hidden)

    def reference() -> Tensor:
        return gather_norm_reference(pool, slots, weight, 1e-5)[1]

    compiled = _compiled(reference, compiler)
    ways: dict[str, Work] = {
        "ours": lambda: gather_norm(pool, slots, weight, 1e-5),
        "oracle": reference,
        "torch.compile": lambda: compiled(),
    }
    if (liger := _liger("rms_norm")) is not None:
        ways["copy, liger"] = lambda: liger.LigerRMSNormFunction.apply(
            pool[slots.long()].flatten(0, 1), weight, 1e-5, 0.0, "llama", False
        )
    return Row("gather_norm", f"[{s.rows}, {s.hidden}]", ways, bytes=2 * s.rows * s.hidden * dtype.itemsize)


def _add_norm(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    pool, slots = _pool(s, device, dtype)
    weight, delta = _random(device, dtype, s.hidden), _random(device, dtype, s.rows, s.hidden)

    def reference() -> tuple[Tensor, Tensor]:
        return gather_norm_reference(pool, slots, weight, 1e-5, delta)

    compiled = _compiled(reference, compiler)
    ways: dict[str, Work] = {
        "ours": lambda: gather_add_norm(pool, slots, delta, weight, 1e-5),
        "oracle": reference,
        "torch.compile": lambda: compiled(),
    }
    if (liger := _liger("fused_add_rms_norm")) is not None:

        def library() -> tuple[Tensor, Tensor]:
            x = pool[slots.long()].flatten(0, 1)
            normed, total = liger.LigerFusedAddRMSNormFunction.apply(x, delta, weight, 1e-5, 0.0, "llama", False)
            return total, normed

        ways["copy, liger"] = library
    return Row("gather_add_norm", f"[{s.rows}, {s.hidden}]", ways, bytes=4 * s.rows * s.hidden * dtype.itemsize)


def _scatter(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    pool, slots = _pool(s, device, dtype)
    delta, targets = _random(device, dtype, s.rows, s.hidden), slots + 1

    def ours() -> Tensor:
        scatter_residual_(pool, targets, delta, sources=slots)
        return pool

    def reference() -> Tensor:
        scatter_residual_reference_(pool, targets, delta, sources=slots)
        return pool

    compiled = _compiled(reference, compiler)
    ways: dict[str, Work] = {"ours": ours, "oracle": reference, "torch.compile": lambda: compiled()}
    return Row("scatter_residual", f"[{s.rows}, {s.hidden}]", ways, bytes=3 * s.rows * s.hidden * dtype.itemsize)


def _rotary(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    columns = (s.heads + 2 * s.kv_heads) * s.width
    qkv = _random(device, dtype, s.rows, columns)
    angle = torch.rand(s.tokens, s.width // 2, device=device).repeat(1, 2)  # as models' tables are: halves alike
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    scratch = qkv.clone()

    def ours() -> Tensor:
        return rotary_(scratch, cos, sin, s.heads, s.kv_heads)

    def reference() -> Tensor:
        return rotary_reference(qkv, cos, sin, s.heads, s.kv_heads)

    compiled = _compiled(reference, compiler)
    ways: dict[str, Work] = {"ours": ours, "oracle": reference, "torch.compile": lambda: compiled()}
    turned = (s.heads + s.kv_heads) * s.width
    once: dict[str, Work] = {"ours": lambda: rotary_(qkv.clone(), cos, sin, s.heads, s.kv_heads)}
    if (liger := _liger("rope")) is not None:
        by_head = qkv.view(s.windows, s.tokens, -1, s.width).transpose(1, 2)
        q, k, v = torch.split(by_head, [s.heads, s.kv_heads, s.kv_heads], dim=1)

        def library() -> tuple[Tensor, Tensor]:
            turned: tuple[Tensor, Tensor] = liger.LigerRopeFunction.apply(q, k, cos[None], sin[None])
            return turned

        ways["copy, liger"] = library
        once["copy, liger"] = lambda: torch.cat([*library(), v], dim=1).transpose(1, 2).reshape(s.rows, columns)
    return Row("rotary", f"[{s.rows}, {columns}]", ways, bytes=2 * s.rows * turned * dtype.itemsize, compared=once)


def _attention(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    """What the executor calls for whole windows, in one line with the kernel that takes pages too."""
    qkv = _random(device, dtype, s.rows, (s.heads + 2 * s.kv_heads) * s.width)
    scale = s.width**-0.5
    by_head = qkv.view(s.windows, s.tokens, -1, s.width).transpose(1, 2)
    q, k, v = torch.split(by_head, [s.heads, s.kv_heads, s.kv_heads], dim=1)
    compiled = _compiled(lambda: causal_attention_reference(qkv, s.tokens, s.heads, s.kv_heads, scale), compiler)
    starts = torch.arange(0, s.rows + 1, s.tokens, dtype=torch.int32, device=device)
    nothing = PagedContext(
        torch.zeros(1, 2, s.kv_heads, s.page, s.width, dtype=dtype, device=device),
        torch.zeros(s.windows, 1, dtype=torch.int32, device=device),
        torch.zeros(s.windows, dtype=torch.int32, device=device),
    )
    ways: dict[str, Work] = {
        "ours": lambda: paged_attention(qkv, starts, nothing, s.tokens, scale),
        "oracle": lambda: causal_attention_reference(qkv, s.tokens, s.heads, s.kv_heads, scale),
        "torch.compile": lambda: compiled(),
        "SDPA": lambda: F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=True
        ).transpose(1, 2).flatten(2),
    }  # fmt: skip
    size = s.rows * (2 * s.heads + 2 * s.kv_heads) * s.width * dtype.itemsize
    flops = 4 * s.rows * (s.tokens + 1) // 2 * s.heads * s.width
    return Row("attention of windows", f"{s.windows} × {s.tokens}", ways, bytes=size, flops=flops)


def _context(s: Sizes, device: torch.device, dtype: torch.dtype) -> PagedContext:
    room = -(-s.context // s.page)
    pages = _random(device, dtype, s.sequences * room, 2, s.kv_heads, s.page, s.width)
    tables = torch.randperm(s.sequences * room, device=device).view(s.sequences, room).to(torch.int32)
    return PagedContext(pages, tables, torch.full((s.sequences,), s.context, dtype=torch.int32, device=device))


def _dense(s: Sizes, context: PagedContext) -> tuple[Tensor, Tensor]:
    """Keys and values of the contexts as libraries want them, [sequences, kv_heads, context, width] each."""
    known = context.pages[context.tables.long()].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)[:, :, :, : s.context]
    return known[0].contiguous(), known[1].contiguous()


def _paged(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    context = _context(s, device, dtype)
    new, scale = max(2, s.tokens), s.width**-0.5
    qkv = _random(device, dtype, s.sequences * new, (s.heads + 2 * s.kv_heads) * s.width)
    starts = torch.arange(0, s.sequences * new + 1, new, dtype=torch.int32, device=device)
    by_head = qkv.view(s.sequences, new, -1, s.width).transpose(1, 2)
    q, k, v = torch.split(by_head, [s.heads, s.kv_heads, s.kv_heads], dim=1)
    seen = torch.ones(new, s.context + new, dtype=torch.bool, device=device).tril(s.context)

    def library() -> Tensor:
        keys, values = _dense(s, context)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, scale=scale, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(2)

    compiled = _compiled(library, compiler)
    ways: dict[str, Work] = {
        "ours": lambda: paged_attention(qkv, starts, context, new, scale),
        "oracle": lambda: paged_attention_reference(qkv, starts, context, scale),
        "copy, SDPA": library,
        "copy, SDPA, torch.compile": lambda: compiled(),
    }
    pairs = s.sequences * new * (s.context + (new + 1) // 2)
    size = s.sequences * (new * (2 * s.heads + 2 * s.kv_heads) + 2 * s.context * s.kv_heads) * s.width
    return Row(
        "paged_attention", f"{s.sequences} × {new} behind {s.context}", ways, bytes=size * dtype.itemsize,
        flops=4 * pairs * s.heads * s.width,
    )  # fmt: skip


def _decode(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    context = _context(s, device, dtype)
    queries, scale = _random(device, dtype, s.sequences, s.heads * s.width), s.width**-0.5
    keys, values = _dense(s, context)
    q = queries.view(s.sequences, s.heads, 1, s.width)

    def library() -> Tensor:
        known = _dense(s, context)
        return F.scaled_dot_product_attention(q, *known, scale=scale, enable_gqa=True)

    compiled = _compiled(library, compiler)
    ways: dict[str, Work] = {
        "ours": lambda: decode_attention(queries, context, scale),
        "oracle": lambda: decode_attention_reference(queries, context, scale),
        "SDPA without pages": lambda: F.scaled_dot_product_attention(q, keys, values, scale=scale, enable_gqa=True),
        "copy, SDPA": library,
        "copy, SDPA, torch.compile": lambda: compiled(),
    }
    if (varlen := _varlen()) is not None and s.context % _LARGE_PAGE == 0:
        # torch's pages: [P, PAGE, kv_heads, D], of which FlashAttention 2 wants 256 tokens
        large = [x.transpose(1, 2).reshape(-1, _LARGE_PAGE, s.kv_heads, s.width).contiguous() for x in (keys, values)]
        table = torch.arange(len(large[0]), dtype=torch.int32, device=device).view(s.sequences, -1)
        starts = torch.arange(s.sequences + 1, dtype=torch.int32, device=device)
        ways["torch's varlen_attn, pages of 256"] = lambda: varlen(
            q[:, :, 0], *large, starts, None, 1, s.context, scale=scale, enable_gqa=True, seqused_k=context.lengths,
            block_table=table,
        )  # fmt: skip
    if importlib.util.find_spec("flashinfer") is not None and device.type == "cuda":
        ways["FlashInfer"] = _flashinfer(s, context, queries, scale)
    size = s.sequences * (2 * s.context * s.kv_heads + 2 * s.heads) * s.width * dtype.itemsize
    return Row(
        "decode_attention", f"{s.sequences} × {s.context}", ways, bytes=size,
        flops=4 * s.sequences * s.context * s.heads * s.width,
    )  # fmt: skip


def _flashinfer(s: Sizes, context: PagedContext, queries: Tensor, scale: float) -> Work:
    """FlashInfer on the very pages: its layout HND is [P, 2, kv_heads, PAGE, D]."""
    import flashinfer

    room = context.tables.shape[1]
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(128 << 20, dtype=torch.uint8, device=queries.device), "HND", use_tensor_cores=True
    )
    wrapper.plan(
        torch.arange(0, s.sequences * room + 1, room, dtype=torch.int32, device=queries.device),
        context.tables.flatten(),
        torch.full((s.sequences,), (s.context - 1) % s.page + 1, dtype=torch.int32, device=queries.device),
        s.heads, s.kv_heads, s.width, s.page, sm_scale=scale, q_data_type=queries.dtype, kv_data_type=queries.dtype,
    )  # fmt: skip
    by_head = queries.view(s.sequences, s.heads, s.width)
    return lambda: wrapper.run(by_head, context.pages)


def _int8(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    return _quantised(s, device, dtype, compiler, 8, 1)


def _int4(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    return _quantised(s, device, dtype, compiler, 4, 1)


def _int4_rows(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    return _quantised(s, device, dtype, compiler, 4, 8)


def _quantised(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None, bits: int, rows: int) -> Row:
    """Gate and up of one token or of some, with the norm before them, next to the product with weights of 16 bits."""
    weight = _random(device, dtype, 2 * s.inner, s.hidden) * s.hidden**-0.5
    packed = pack(weight.float().cpu(), bits).to(device)  # on the CPU, as checkpoints are packed
    x, scale = _random(device, dtype, rows, s.hidden), _random(device, dtype, s.hidden)

    def reference() -> Tensor:
        return quantised_linear_reference(x, packed, scale, 1e-5)

    compiled = _compiled(reference, compiler)
    ways: dict[str, Work] = {
        "ours": lambda: quantised_linear(x, packed, scale, 1e-5),
        "oracle": reference,
        "torch.compile": lambda: compiled(),
    }
    size = sum(
        each.numel() * each.element_size() for each in (packed.values, packed.scale, packed.minimum) if each is not None
    )
    return Row(
        f"quantised_linear, {bits} bits", f"[{rows}, {s.hidden}] × {2 * s.inner}", ways, bytes=size,
        flops=4 * rows * s.inner * s.hidden, product=lambda: F.linear(x, weight),
    )  # fmt: skip


def _head(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    rows = min(s.rows, 1280)
    hidden = _random(device, dtype, rows, s.hidden) * s.hidden**-0.5
    weight = _random(device, dtype, s.words, s.hidden)
    targets = torch.randint(0, s.words, (rows,), device=device)

    def reference() -> Tensor:
        return linear_cross_entropy_reference(hidden, weight, targets).nll

    compiled = _compiled(reference, compiler)
    ways: dict[str, Work] = {
        "ours": lambda: linear_cross_entropy(hidden, weight, targets).nll,
        "oracle": reference,
        "torch.compile": lambda: compiled(),
    }
    if (liger := _liger("fused_linear_cross_entropy")) is not None:
        ways["liger"] = lambda: liger.LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, targets, None, None, -100, 0.0, 0.0, "none"
        )[0]
    ways["ours, products by the library"] = lambda: by_tiles(hidden, weight, targets).nll
    size = (rows * s.hidden + s.words * s.hidden) * dtype.itemsize
    return Row(
        "linear_cross_entropy", f"[{rows}, {s.hidden}] × {s.words}", ways, bytes=size,
        flops=2 * rows * s.hidden * s.words, product=lambda: F.linear(hidden, weight),
    )  # fmt: skip


def _divergence(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    """Losses and the divergence from a teacher, of which Liger has the sum alone, for probabilities in memory."""
    rows = min(s.rows, 1280)
    hidden, teacher = (_random(device, dtype, rows, s.hidden) * s.hidden**-0.5 for _ in range(2))
    weight = _random(device, dtype, s.words, s.hidden)
    targets = torch.randint(0, s.words, (rows,), device=device)

    def reference() -> tuple[Tensor, Tensor]:
        found = linear_cross_entropy_reference(hidden, weight, targets, teacher=teacher)
        assert found.kl is not None
        return found.nll, found.kl

    def ours() -> tuple[Tensor, Tensor]:
        found = linear_cross_entropy(hidden, weight, targets, teacher=teacher)
        assert found.kl is not None
        return found.nll, found.kl

    compiled = _compiled(reference, compiler)
    ways: dict[str, Work] = {"ours": ours, "oracle": reference, "torch.compile": lambda: compiled()}
    size = (2 * rows * s.hidden + s.words * s.hidden) * dtype.itemsize
    return Row(
        "linear_cross_entropy, teacher", f"[{rows}, {s.hidden}] × {s.words}", ways, bytes=size,
        flops=4 * rows * s.hidden * s.words, product=lambda: (F.linear(hidden, weight), F.linear(teacher, weight)),
    )  # fmt: skip


def _delta_rule(s: Sizes, device: torch.device, dtype: torch.dtype, compiler: str | None) -> Row:
    """The recurrence of Qwen3-Next: the engine runs the model's own module, no kernel of ours stands in for it."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    shape = (s.windows, s.tokens, s.heads, s.width)
    q, k = (F.normalize(_random(device, torch.float32, *shape), dim=-1).to(dtype) for _ in range(2))
    v, beta = _random(device, dtype, *shape), torch.rand(shape[:3], device=device).to(dtype)
    decay = -torch.rand(shape[:3], device=device)

    def reference() -> Tensor:
        state = torch.zeros(s.windows, s.heads, s.width, s.width, device=device)
        mixed = []
        for t in range(s.tokens):
            key, query = k[:, t].float(), q[:, t].float() * s.width**-0.5
            state = state * decay[:, t].exp()[..., None, None]
            gap = (v[:, t].float() - (state * key[..., None]).sum(-2)) * beta[:, t, :, None].float()
            state = state + key[..., None] * gap[..., None, :]
            mixed.append((state * query[..., None]).sum(-2))
        return torch.stack(mixed, dim=1)

    ways: dict[str, Work] = {
        "oracle": reference,
        "transformers' module": lambda: torch_chunk_gated_delta_rule(q, k, v, decay, beta)[0],
    }
    if importlib.util.find_spec("fla") is not None and torch.cuda.is_available():
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        ways["flash-linear-attention"] = lambda: chunk_gated_delta_rule(q, k, v, decay, beta)[0]
    size, steps = 4 * s.rows * s.heads * s.width * dtype.itemsize, s.rows * s.heads
    return Row(
        "gated delta rule", f"{s.windows} × {s.tokens}, {s.heads} heads of {s.width}", ways, bytes=size,
        flops=6 * steps * s.width**2,
    )  # fmt: skip


_ROWS = (
    _swiglu, _geglu, _norm, _add_norm, _scatter, _rotary, _attention, _paged, _decode, _head, _divergence, _int8, _int4,
    _int4_rows, _delta_rule,
)  # fmt: skip
