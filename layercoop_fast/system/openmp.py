"""Threads that torch's products run on, for the core's loops between these products.

OpenMP's threads wait for a while without sleeping when a product is done. Threads of the core's own would have to wake
up beside them, on the same processors, for loops that take a fraction of a millisecond
(docs/decisions/042-loops-run-on-torchs-threads.md).
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from layercoop_fast import _C

# Where torch's wheels for Linux keep it; another one, such as that of another library, has other threads.
_TORCHS = re.compile(r"/\S*/torch/lib/libgomp[^/\s]*$", re.MULTILINE)


def borrow_torchs_threads() -> bool:
    """Let the core's loops run on the threads of the OpenMP library that torch has loaded; whether there is one.

    Without it they run on threads of their own.
    """
    try:
        found = _TORCHS.search(Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"))
        if found is None:
            return False
        parallel = ctypes.CDLL(found[0]).GOMP_parallel
    except (OSError, AttributeError):
        return False
    _C.borrow_threads(ctypes.cast(parallel, ctypes.c_void_p).value or 0)
    return True
