"""Random contexts in pages, for the tests of attention."""

from __future__ import annotations

import torch
from close import noise

from layercoop_fast.kernels.reference.attention import PagedContext


def paged(lengths: list[int], kv_heads: int, page: int, width: int, dtype: torch.dtype, device: str) -> PagedContext:
    """Pages in random order, some shared by sequences; what no sequence owns holds NaN."""
    room = max(1, -(-max(lengths) // page))
    pages = noise(3 + len(lengths) * room, 2, kv_heads, page, width, dtype=dtype)
    order = torch.randperm(len(pages) - 1, generator=torch.Generator().manual_seed(1)) + 1
    tables = order[: len(lengths) * room].view(len(lengths), room).to(torch.int32)
    if len(lengths) > 2:
        tables[2] = tables[0]  # one text behind another's beginning
    pages[0] = float("nan")
    for length, table in zip(lengths, tables, strict=True):
        table[-(-length // page) or 1 :] = 0  # past the end stands a page that nobody may read
    return PagedContext(pages.to(device), tables.to(device), torch.tensor(lengths, dtype=torch.int32, device=device))
