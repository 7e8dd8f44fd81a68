"""Real shapes of the Triton kernels, compiled ahead of time (`ahead_of_time.py`) and listed in docs/kernels.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from layercoop_fast.kernels.gpu import (
    decode_attention,
    enumeration,
    gather_norm,
    gemv,
    linear_cross_entropy,
    paged_attention,
    rotary,
    scatter_residual,
    surrogate,
    swiglu,
)
from layercoop_fast.kernels.gpu.frame import blocks
from layercoop_fast.kernels.reference.attention import PagedContext, PagePlaces, Teams
from layercoop_fast.kernels.reference.blocks import HeadNorms
from layercoop_fast.kernels.reference.quantised import GROUP, PackedWeight
from layercoop_fast.runtime.gpu_teams import TEAM


@dataclass(frozen=True)
class Case:
    """A real shape of an operation: what its launcher is called with, and what that must move and compute.

    `run` calls the launcher on tensors of the meta device. `bytes` counts every input and output once, `flops` a
    multiplication and an addition as two; `operations` are those outside matrix units where they bound the kernel (else
    0). `dot` says that matrix instructions are expected, `wide` that 128-bit loads are.

    Attributes:
        main: whether it is in the table of docs/kernels.md and must not spill registers. The others show that sizes of
            1 compile too: Triton makes constants of these.
        loop: the kernel in whose longest loop threads must not wait for each other (on NVIDIA).
        per: numbers that a thread has in a pass of that loop.
        slots: instructions of the loop that are allowed a number; 0 for any.
        targets: how the names of its targets begin: "cuda", "hip", or "" for all.
    """

    operation: str
    shape: str
    config: str
    run: Callable[[], object]
    bytes: int
    flops: int = 0
    operations: int = 0
    dot: bool = False
    wide: bool = True
    main: bool = True
    loop: str | None = None
    per: int = 0
    slots: float = 0.0
    targets: str | tuple[str, ...] = ""


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor [*shape] without memory, for `Case.run`."""
    return torch.empty(shape, dtype=dtype, device="meta")


def meta_context(sequences: int, tokens: int, kv_heads: int, width: int, dtype: torch.dtype) -> PagedContext:
    """Contexts of so many tokens each in pages of 16, without memory, for `Case.run`."""
    return PagedContext(
        meta(blocks(sequences * tokens, 16), 2, kv_heads, 16, width, dtype=dtype),
        meta(sequences, blocks(tokens, 16), dtype=torch.int32),
        meta(sequences, dtype=torch.int32),
    )


def _gather_norm() -> list[Case]:
    """A block's two norms for 128 windows of 128 tokens of an 8B llama, and the norm of one decoded token."""
    found = []
    for batch, tokens, width in ((128, 128, 4096), (128, 128, 8192), (1, 1, 4096)):
        rows = batch * tokens
        pool, slots = meta(2 * batch, tokens, width), meta(batch, dtype=torch.int32)
        weight, matrix = meta(width), meta(rows, width)
        run = partial(gather_norm.launch_norm, pool, weight, 1e-5, matrix, slots=slots)
        shape, size = f"[{rows}, {width}]", 2 * rows * width
        found.append(Case("gather_norm", shape, "row", run, bytes=2 * size + 2 * width))
        run = partial(run, delta=matrix, total=matrix)
        found.append(Case("gather_add_norm", shape, "row", run, bytes=4 * size + 2 * width))
    rows, width = 64, 4096  # a step of generation under several masks
    matrix, weight, keep = meta(rows, width), meta(width), meta(rows, dtype=torch.int32)
    run = partial(gather_norm.launch_norm, matrix, weight, 1e-5, matrix, delta=matrix, keep=keep, total=matrix)
    found.append(Case("add_norm, masks", f"[{rows}, {width}]", "row", run, bytes=8 * rows * width + 2 * width))
    one = meta(1, 1)
    run = partial(
        gather_norm.launch_norm,
        one[None],
        one[0],
        1e-5,
        one,
        slots=meta(1, dtype=torch.int32),
        delta=one,
        total=one,
        gemma=True,
        config=gather_norm.CONFIGS["short"],
    )
    return [*found, Case("gather_add_norm", "[1, 1]", "short", run, bytes=8, wide=False, main=False)]


def _scatter_residual() -> list[Case]:
    """A block's output for 128 windows of 128 tokens of an 8B llama, and one decoded token's."""
    found = []
    for batch, tokens, config in ((128, 128, "wide"), (1, 1, "wide")):
        width = 4096
        pool, slots, matrix = (
            meta(2 * batch, tokens, width),
            meta(batch, dtype=torch.int32),
            meta(batch * tokens, width),
        )
        run = partial(
            scatter_residual.launch_scatter, pool, slots, matrix, sources=slots, config=scatter_residual.CONFIGS[config]
        )
        size = 2 * batch * tokens * width
        found.append(Case("scatter_residual", f"[{batch * tokens}, {width}]", config, run, bytes=3 * size))
    one, slots = meta(1, 1), meta(1, dtype=torch.int32)
    run = partial(
        scatter_residual.launch_scatter, one[None], slots, one, residual=one, config=scatter_residual.CONFIGS["narrow"]
    )
    return [*found, Case("scatter_residual", "[1, 1]", "narrow", run, bytes=6, wide=False, main=False)]


def _rotary() -> list[Case]:
    """The joint projection of an 8B llama, of a Qwen3 of the same size (QK-norm), and of one decoded token."""
    found, width = [], 128
    for rows, norm in ((16384, False), (16384, True), (1, False)):
        x, table, weight = meta(rows, 48 * width), meta(128, width), meta(width) if norm else None
        norms = HeadNorms(weight, weight, eps=1e-6)
        run = partial(rotary.launch_rotary, x, table, table, 32, 8, norms, config=rotary.CONFIGS["many"])
        shape = f"[{rows}, (32 + 8 + 8)·{width}]{', QK-norm' if norm else ''}"
        found.append(Case("rotary", shape, "many", run, bytes=2 * 2 * rows * 40 * width + 4 * min(rows, 128) * width))
    for rows in (1, 64):  # a step of generation, which writes keys and values into pages
        x, table, at = meta(rows, 48 * width), meta(rows, width), meta(rows, dtype=torch.int32)
        into = PagePlaces(meta(512, 2, 8, 16, width), at, at)
        run = partial(
            rotary.launch_rotary, x, table, table, 32, 8, HeadNorms(None, None), into, config=rotary.CONFIGS["many"]
        )
        size = 2 * rows * (2 * 40 + 8 + 16 + 2) * width
        found.append(Case("rotary_to_pages", f"[{rows}, (32 + 8 + 8)·{width}]", "many", run, bytes=size))
    one = meta(1, 2)
    run = partial(rotary.launch_rotary, one, one, one, 1, 0, HeadNorms(one[0], eps=1e-6), config=rotary.CONFIGS["few"])
    return [*found, Case("rotary", "[1, (1 + 0 + 0)·2], QK-norm", "few", run, bytes=16, wide=False, main=False)]


def _swiglu() -> list[Case]:
    """The MLP of an 8B llama over 128 windows of 128 tokens, and of its decoding of one token."""
    found, width = [], 14336
    for name, gelu in (("swiglu", False), ("geglu", True)):
        for rows, config in ((16384, "wide"), (1, "narrow")):
            run = partial(
                swiglu.launch_gated, meta(rows, 2 * width), meta(rows, width), gelu=gelu, config=swiglu.CONFIGS[config]
            )
            found.append(Case(name, f"[{rows}, 2·{width}]", config, run, bytes=2 * 3 * rows * width))
    run = partial(swiglu.launch_gated, meta(1, 2), meta(1, 1), gelu=True, config=swiglu.CONFIGS["narrow"])
    return [*found, Case("geglu", "[1, 2·1]", "narrow", run, bytes=6, wide=False, main=False)]


def _linear_cross_entropy() -> list[Case]:
    """The head of an 8B llama (128k tokens) over 128 windows of 128 tokens and over 10, and with a teacher."""
    found, words, width = [], 128256, 4096
    for rows, teacher, config, targets in (
        (16384, False, "large", "cuda"),
        (16384, False, "medium", "cuda"),
        (1280, False, "large", "cuda"),
        (1280, True, "teacher", "cuda"),
        (1280, False, "amd", "hip"),
        (1280, True, "amd_teacher", "hip"),
    ):
        states, losses = meta(rows, width), meta(rows, dtype=torch.float32)
        run = partial(
            linear_cross_entropy.launch_head_loss,
            states,
            meta(words, width),
            meta(rows, dtype=torch.int64),
            losses,
            teacher=states if teacher else None,
            kl=losses if teacher else None,
            config=linear_cross_entropy.CONFIGS[config],
        )
        sides = 2 if teacher else 1
        shape = f"[{rows}, {width}] · [{words}, {width}]ᵀ{', teacher' if teacher else ''}"
        size, flops = 2 * (sides * rows + words) * width + 4 * sides * rows, 2 * sides * rows * words * width
        found.append(
            Case("linear_cross_entropy", shape, config, run, bytes=size, flops=flops, dot=True, targets=targets)
        )
    one, loss = meta(1, 1), meta(1, dtype=torch.float32)
    run = partial(
        linear_cross_entropy.launch_head_loss,
        one,
        one,
        meta(1, dtype=torch.int64),
        loss,
        bias=one[0],
        soft_cap=1.0,
        teacher=one,
        kl=loss,
        config=linear_cross_entropy.CONFIGS["small"],
    )
    shape = "[1, 1] · [1, 1]ᵀ, teacher"
    return [*found, Case("linear_cross_entropy", shape, "small", run, bytes=8, wide=False, main=False)]


def _gemv() -> list[Case]:
    """Gate and up of an 8B llama, one token at a time and 8, in 4 and in 8 bits."""
    found, outs, columns = [], 28672, 4096
    for bits in (4, 8):
        # AMD's warps are too many for loads of 128 bits where blocks are small.
        for rows, config, targets in ((1, "one", ""), (1, "one_wide", ""), (8, "few", "cuda"), (8, "few", "hip")):
            scale = meta(outs, columns // GROUP, dtype=torch.float16)
            values = meta(outs, columns * bits // 8, dtype=torch.uint8 if bits == 4 else torch.int8)
            weight = PackedWeight(values, scale, scale if bits == 4 else None)
            x, out = meta(rows, columns), meta(rows, outs)
            run = partial(
                gemv.launch_quantised, x, weight, out, norm=meta(columns), eps=1e-5, config=gemv.CONFIGS[config]
            )
            size = outs * columns * bits // 8 + 2 * outs * columns // GROUP * (2 if bits == 4 else 1)
            size += 2 * rows * (columns + outs) + 2 * columns
            work, dot = 2 * rows * outs * columns, rows > 1
            shape = f"[{rows}, {columns}] · [{outs}, {columns}]ᵀ, {bits} bits"
            case = Case("gemv", shape, config, run, bytes=size, dot=dot, wide=dot and targets != "hip")
            case = replace(case, targets=targets, flops=work if dot else 0, operations=0 if dot else work)
            if not dot:  # a thread has a group of each row; a weight is worth an and-or, a sum and a product
                blocks_of = gemv.CONFIGS[config].blocks
                per = blocks_of["OUTS"] * blocks_of["GROUPS"] * GROUP // (32 * gemv.CONFIGS[config].warps)
                case = replace(case, loop="_one_row", per=per, slots=4.4 if bits == 4 else 5.0)
            found.append(case)
    outs, scale = 4096, meta(4096, 128, dtype=torch.float16)  # outputs that do not fill a chip: columns are split
    weight = PackedWeight(meta(outs, columns // 2, dtype=torch.uint8), scale, scale)
    run = partial(gemv.launch_quantised, meta(8, columns), weight, meta(8, outs), norm=meta(columns), eps=1e-5)
    size = outs * columns // 2 + 4 * outs * columns // GROUP + 16 * (columns + outs) + 2 * columns
    found.append(
        Case("gemv", f"[8, {columns}] · [{outs}, {columns}]ᵀ, 4 bits", "few", run, size, 16 * outs * columns, dot=True)
    )
    scale = meta(1, 1, dtype=torch.float16)
    weight = PackedWeight(meta(1, GROUP // 2, dtype=torch.uint8), scale, scale)
    for rows, config in ((1, "one"), (2, "few")):
        run = partial(gemv.launch_quantised, meta(rows, GROUP), weight, meta(rows, 1), config=gemv.CONFIGS[config])
        shape = f"[{rows}, {GROUP}] · [1, {GROUP}]ᵀ, 4 bits"
        found.append(Case("gemv", shape, config, run, bytes=20 + 66 * rows, wide=False, main=False))
    return found


def _surrogate() -> list[Case]:
    """80,000 masks of 32 layers, as the published contributions take, on one network and on an ensemble of 8."""
    found, count, players, units = [], 80000, 32, 64
    for ensemble in (1, 8):
        fp32 = partial(meta, dtype=torch.float32)
        networks = surrogate.DeviceNetworks(
            fp32(ensemble, units, players),
            fp32(ensemble, units),
            fp32(ensemble, units),
            fp32(ensemble),
            "celu",
            sigmoid=True,
            factored=True,
        )
        masks, shape = meta(count, players, dtype=torch.bool), f"{count} masks of {players}, {ensemble} × {units} units"
        size, hidden = count * players, 2 * count * ensemble * units
        run = partial(surrogate.launch_logits, networks, masks, fp32(count, ensemble))
        work = hidden * (players + 6)
        found.append(Case("surrogate_logits", shape, "logits", run, bytes=size, operations=work, wide=False))
        for config in ("celu", "many") if ensemble == 8 else ("celu",):
            # A flip of a unit: addition, two selections, two multiply-adds, maximum, minimum.
            work = hidden * players + 7 * count * players * ensemble * units
            sums = partial(surrogate.launch_marginals, networks, masks, config=surrogate.CONFIGS[config])
            found.append(Case("marginals", shape, config, sums, bytes=size, operations=work, wide=False))
    one = partial(meta, dtype=torch.float32)
    networks = surrogate.DeviceNetworks(
        one(1, 1, 1), one(1, 1), one(1, 1), one(1), "gelu", sigmoid=False, factored=False
    )
    sums = partial(surrogate.launch_marginals, networks, meta(1, 1, dtype=torch.bool), config=surrogate.CONFIGS["celu"])
    return [*found, Case("marginals", "1 mask of 1, 1 × 1 units", "celu", sums, bytes=1, wide=False, main=False)]


def _enumeration() -> list[Case]:
    """2²⁸ masks at a time (14 players and 14) of a network of 32 layers: alone, with pairs and best masks; of 40."""
    found = []
    for layers, ensemble, extras in ((32, 1, False), (32, 1, True), (40, 1, False), (32, 8, False)):
        units, lows, highs, chunks = 2 * layers, 17280, 16896, 80
        fp32, int32 = partial(meta, dtype=torch.float32), partial(meta, dtype=torch.int32)
        low, high = fp32(ensemble * units, lows), fp32(ensemble * units, highs)
        tables = enumeration.Tables(
            low,
            high,
            low,
            high,
            fp32(ensemble * units),
            fp32(ensemble),
            fp32(29),
            int32(lows),
            int32(highs),
            int32(lows // 128),
            int32(chunks),
            int32(chunks),
            int32(chunks),
            "celu",
            sigmoid=True,
        )
        run = partial(
            enumeration.launch_enumerate,
            tables,
            high_players=14,
            top=extras,
            pairs=extras,
            config=enumeration.CONFIGS["large"],
        )
        shape = f"2^28 masks, {ensemble} × {units} units{', pairs and best' if extras else ''}"
        # Of a unit three additions or multiply-adds, and a maximum and a minimum at half their rate; of a mask some 20.
        work = 2**28 * (2 * 7 * ensemble * units + 40 + (32 if extras else 0))
        size = 4 * 2 * ensemble * units * (lows + highs) + 4 * (lows * chunks + highs * lows // 128)
        case = Case("enumeration", shape, "large", run, bytes=size, operations=work, wide=False)
        found.append(replace(case, loop="_enumerate"))
        if extras:
            tiles, scored = int32(29 * 38), 29 * 38 * 32 * 128
            best = partial(enumeration.launch_scores, tables, tiles, tiles, config=enumeration.CONFIGS["large"])
            work = 2 * 7 * units * scored
            found.append(Case("best_tiles", shape, "large", best, bytes=4 * scored, operations=work, wide=False))
    low, high = fp32(1, 16), fp32(1, 16)
    tables = enumeration.Tables(
        low,
        high,
        None,
        None,
        fp32(1),
        fp32(1),
        fp32(3),
        int32(16),
        int32(16),
        int32(1),
        int32(1),
        int32(1),
        int32(1),
        "tanh",
        sigmoid=False,
    )
    run = partial(
        enumeration.launch_enumerate, tables, high_players=1, top=True, pairs=True, config=enumeration.CONFIGS["small"]
    )
    return [*found, Case("enumeration", "2^2 masks, 1 × 1 units", "small", run, bytes=4, wide=False, main=False)]


def _paged_attention() -> list[Case]:
    """An 8B llama: 16 texts of 512 tokens behind 1,536 shared ones; four drafted tokens of each of 32; Gemma's."""
    found = []
    for name, sequences, new, known, heads, kv_heads, width, cap in (
        ("long", 16, 512, 1536, 32, 8, 128, 0.0),
        ("short", 32, 4, 2048, 32, 8, 128, 0.0),
        ("wide", 16, 512, 1536, 8, 4, 256, 50.0),
        ("large", 16, 512, 1536, 32, 8, 128, 0.0),
        ("full", 1, 512, 1536, 32, 8, 128, 0.0),
        ("short", 1, 1, 1, 1, 1, 1, 0.0),
    ):
        full = name == "full"
        dtype = torch.float32 if full else torch.bfloat16
        size = (
            dtype.itemsize * (sequences * new * (2 * heads + 2 * kv_heads) + 2 * sequences * known * kv_heads) * width
        )
        pairs = sequences * new * (known + (new + 1) // 2)
        context = meta_context(sequences, known, kv_heads, width, dtype)
        qkv = meta(sequences * new, (heads + 2 * kv_heads) * width, dtype=dtype)
        out, starts = meta(sequences * new, heads * width, dtype=dtype), meta(sequences + 1, dtype=torch.int32)
        run = partial(
            paged_attention.launch_paged,
            qkv,
            starts,
            context,
            out,
            new,
            width**-0.5,
            cap=cap,
            config=paged_attention.CONFIGS[name],
        )
        found.append(
            Case(
                "paged_attention",
                f"{sequences} × {new} behind {known}, {heads}/{kv_heads} heads of {width}{', fp32' if full else ''}",
                name,
                run,
                bytes=size,
                flops=0 if full else 4 * pairs * heads * width,
                operations=pairs * heads * (1 + 4 * width if full else 1),
                dot=not full,
                main=width > 1,
                targets=("cuda:90", "cuda:100") if name == "large" else "",
            )
        )
    return found


def _decode_attention() -> list[Case]:
    """An 8B llama: one request of 8,192 tokens, 64 of 2,048, 8 that are not split; Gemma's heads of 256; teams."""
    found = []
    for name, sequences, length, heads, kv_heads, width, cap, common in (
        ("split", 1, 8192, 32, 8, 128, 0.0, 0),
        ("split", 64, 2048, 32, 8, 128, 0.0, 0),
        ("split", 8, 128, 32, 8, 128, 0.0, 0),
        ("split", 64, 8192, 32, 8, 128, 0.0, 8000),
        ("wide", 8, 4096, 8, 4, 256, 50.0, 0),
        ("wide", 8, 4096, 8, 4, 256, 50.0, 4000),
        ("full", 1, 8192, 32, 8, 128, 0.0, 0),
        ("full", 8, 8192, 32, 8, 128, 0.0, 8000),
        ("split", 1, 1, 1, 1, 1, 0.0, 0),
    ):
        full = name == "full"
        dtype = torch.float32 if full else torch.bfloat16
        context = meta_context(sequences, length, kv_heads, width, dtype)
        read = sequences * length
        if common:
            members, shared = meta(sequences // TEAM, TEAM, dtype=torch.int32), meta(sequences, dtype=torch.int32)
            context = replace(context, teams=Teams(members, shared))
            read -= (sequences - sequences // TEAM) * common
        queries, out = (meta(sequences, heads * width, dtype=dtype) for _ in range(2))
        run = partial(
            decode_attention.launch_decode,
            queries,
            context,
            out,
            width**-0.5,
            cap=cap,
            config=decode_attention.CONFIGS[name],
        )
        found.append(
            Case(
                "decode_attention",
                f"{sequences} × {length}{f', {common} of them in teams of {TEAM}' if common else ''}, "
                f"{heads}/{kv_heads} heads of {width}{', fp32' if full else ''}",
                name,
                run,
                bytes=dtype.itemsize * (2 * read * kv_heads + 2 * sequences * heads) * width,
                flops=0 if full else 4 * sequences * length * heads * width,
                operations=sequences * length * heads * (1 + 4 * width if full else 1),
                dot=not full,
                main=width > 1,
            )
        )
    return found


CASES: dict[str, Callable[[], list[Case]]] = {
    "gather_norm": _gather_norm,
    "scatter_residual": _scatter_residual,
    "rotary": _rotary,
    "swiglu": _swiglu,
    "linear_cross_entropy": _linear_cross_entropy,
    "gemv": _gemv,
    "surrogate": _surrogate,
    "enumeration": _enumeration,
    "paged_attention": _paged_attention,
    "decode_attention": _decode_attention,
}
"""Of each operation of `layercoop_fast/kernels/gpu`."""
