"""Levels of instruction sets that a processor can be limited to, and the tests that depend on them.

    python tests/support/limited.py        # runs these tests once a level: `make test-isa`

A level is what a whole kind of machine has: of our kernels, of torch's, of oneDNN's, of MKL's and of bitsandbytes'.
The highest level of this machine is what `make test` runs; levels that it lacks are named, not run.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# bitsandbytes has no switch for its kernels for AVX512-BF16: `hold_bitsandbytes` is one, by this variable.
NO_BITSANDBYTES_BF16 = "LAYERCOOP_TEST_NO_BITSANDBYTES_BF16"

# Files and single tests, by their names below tests/: kernels and what stands on them, exact worths, quantised models.
DEPENDENT = (
    "csrc/test_dispatch.py",
    "kernels/test_",
    "llama/test_fast_blocks.py",
    "llama/test_fused_head.py",
    "masked/test_batch_width.py",
    "engine/test_offload_memory.py",
    "export/test_quantised.py",
    "families/test_families.py::test_the_row_of_the_page_is_what_runs[Llama 3]",
    "families/test_families.py::test_the_row_of_the_page_is_what_runs[Mamba]",
    "families/test_families.py::test_the_row_of_the_page_is_what_runs[GPT-2]",
    "game/test_staged.py",
    "runtime/test_native.py",
    "runtime/test_native_shapes.py",
)


@dataclass(frozen=True)
class Level:
    """One kind of machine: what its processor says it has, and what limits a better one to that."""

    name: str
    flags: frozenset[str]
    environment: dict[str, str]


def _level(
    name: str, flags: str, ours: str, torch: str, onednn: str, mkl: str, *, bf16: bool = False, amx: bool = False
) -> Level:
    environment = {
        "LAYERCOOP_ISA": ours,
        "LAYERCOOP_DOTS": "1" if bf16 else "0",
        "LAYERCOOP_MATRICES": "1" if amx else "0",
        "ATEN_CPU_CAPABILITY": torch,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        NO_BITSANDBYTES_BF16: "" if bf16 else "1",
    }
    return Level(name, frozenset(flags.split()), environment)


_AVX2 = "avx2 fma f16c"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512dq avx512vl"
_BF16 = f"{_AVX512} avx512_vnni avx512_bf16"
_AMX = "amx_tile amx_bf16 amx_int8"
# From the lowest to the highest of a kind of machine, ARM or x86.
LEVELS = (
    _level("portable", "", "portable", "default", "SSE41", "SSE4_2"),
    _level("NEON", "asimd", "neon", "default", "", ""),
    _level("AVX2", _AVX2, "avx2", "avx2", "AVX2", "AVX2"),
    _level("AVX-512", _AVX512, "avx512", "avx512", "AVX512_CORE", "AVX512"),
    _level("AVX512-BF16", _BF16, "avx512", "avx512", "AVX512_CORE_BF16", "AVX512", bf16=True),
    _level("AMX", f"{_BF16} {_AMX}", "avx512", "avx512", "AVX512_CORE_AMX", "AVX512", bf16=True, amx=True),
)


def depends(node: str) -> bool:
    """Whether a test depends on the instruction set, by its name below tests/."""
    return node.startswith(DEPENDENT)


def flags_of_this_machine() -> frozenset[str]:
    """What the processor says it has; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    names = ("flags", "Features")  # of x86, and of ARM
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith(names)), ()))


def levels_of(flags: frozenset[str]) -> tuple[list[Level], list[Level]]:
    """Levels that a machine has, its own last, and those that it lacks."""
    here = [level for level in LEVELS if level.flags <= flags]
    return here, [level for level in LEVELS if level not in here]


def hold_bitsandbytes() -> None:
    """Have bitsandbytes find no AVX512-BF16, where the environment says so; it may be imported later or never."""
    if os.environ.get(NO_BITSANDBYTES_BF16):
        sys.meta_path.insert(0, _Held())


class _Held(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `bitsandbytes.functional` as it is, but for its answer on AVX512-BF16, which others take from there."""

    MODULE = "bitsandbytes.functional"

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        assert self.loader is not None
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert self.loader is not None
        self.loader.exec_module(module)
        assert callable(module.has_avx512bf16), "bitsandbytes decides otherwise now: hold it another way"
        module.has_avx512bf16 = lambda: False


def main(arguments: Sequence[str]) -> int:
    """Run the dependent tests at every level below this machine's own; `arguments` go to pytest."""
    here, lacking = levels_of(flags_of_this_machine())
    own, below = here[-1], here[:-1]
    failed = []
    for level in below:
        print(
            f"\n== limited to {level.name}: {' '.join(f'{k}={v}' for k, v in level.environment.items() if v)}",
            flush=True,
        )
        command = [sys.executable, "-m", "pytest", "-q", "-m", "isa and not slow", *arguments]
        if subprocess.run(command, env={**os.environ, **level.environment}, check=False).returncode:
            failed.append(level.name)
    print(f"\nlevels run: {', '.join(level.name for level in below) or 'none'}; `make test` runs {own.name}")
    if lacking:
        print(f"left out, since this machine lacks them: {', '.join(level.name for level in lacking)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
