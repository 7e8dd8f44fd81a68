"""Triton versions of the kernels, one file an operation; nothing here is imported before a tensor lies on a GPU.

A file of an operation holds, in this order: the formula with shapes, dtypes, source and why no library does it; an
oracle, or the import of the one beside the C++ version; named configurations; the kernel; a launcher; the operator that
`torch.compile` traces through (`torch.library`, with its fake); `cases()`, the real shapes that are compiled ahead of
time and stand in docs/kernels.md. `frame.py` has what they share, `aot.py` compiles and inspects.
"""

from __future__ import annotations

OPERATIONS = (
    "gather_norm",
    "scatter_residual",
    "rotary",
    "swiglu",
    "linear_cross_entropy",
    "gemv",
    "surrogate",
    "enumeration",
    "paged_attention",
    "decode_attention",
)
"""The files here that hold an operation."""
