"""Triton versions of the operations, one file each. Nothing here is imported before a tensor lies on a GPU.

A file holds, in this order: what differs from the formula in `kernels/reference/`, and why no library does it; named
configurations; the kernel; its launcher. Launchers check nothing: the functions of `kernels/` call them with checked
arguments. `frame.py` has what the files share. `tests/support/kernel_cases.py` has the real shapes that are compiled
ahead of time and listed in docs/kernels.md.
"""
