"""Triton versions of the operations, one file each. Nothing here is imported before a tensor lies on a GPU.

A file holds, in this order: what differs from the formula in `kernels/reference/`, and why no library does it; named
configurations; the kernel; its launcher; `cases()`, the real shapes that are compiled ahead of time and listed in
docs/kernels.md. Launchers check nothing: the functions of `kernels/` call them with checked arguments. `frame.py` has
what the files share, `aot.py` compiles and inspects.
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
