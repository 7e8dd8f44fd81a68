"""How fast this machine reads memory: what the speed of decoding is compared with.

A loop of vector loads and sums, compiled here for the machine's own processor, one thread a share; where there is no
compiler, torch's sum, which reads a quarter less on some machines.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

SOURCE = """
typedef float lanes __attribute__((vector_size(64)));
float read_all(const lanes* p, long count) {
  lanes sums[4] = {0};
  for (long i = 0; i + 4 <= count; i += 4)
    for (int j = 0; j < 4; ++j) sums[j] += p[i + j];
  return (sums[0] + sums[1] + sums[2] + sums[3])[0];
}
"""


@cache
def reader() -> Callable[[int, int], float] | None:
    """The compiled loop (address, vectors of 64 bytes), which lets go of the GIL; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "read.so"
        command = [compiler, "-O3", "-march=native", "-ffast-math", "-w", "-shared", "-fPIC", "-x", "c", "-"]
        subprocess.run([*command, "-o", library], input=SOURCE.encode(), check=True)
        found = ctypes.CDLL(str(library)).read_all
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_float
    return found  # type: ignore[no-any-return]


@cache
def far_too_much() -> torch.Tensor:
    """More numbers than caches hold: 256 MiB."""
    return torch.ones(1 << 26)


def read_speed(threads: int, repeats: int = 5) -> float:
    """Bytes a second at which so many threads read 256 MiB together; the fastest of `repeats` times."""
    numbers = far_too_much()
    loop = reader()
    vectors = numbers.numel() // 16 // threads
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            started = time.perf_counter()
            if loop is None:
                numbers.sum()
            else:
                addresses = [numbers.data_ptr() + 64 * vectors * thread for thread in range(threads)]
                list(pool.map(loop, addresses, [vectors] * threads))
            seconds.append(time.perf_counter() - started)
    return 4 * numbers.numel() / min(seconds)
