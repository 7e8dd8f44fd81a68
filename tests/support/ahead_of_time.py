"""Compile every kernel for chips that are not here, and find in the result what would be slow there.

    python tests/support/ahead_of_time.py [--quick] [--operations a,b] [--targets cuda:90,hip:gfx942] [--out FILE]

writes JSON: for each kernel of each case and target its registers, spilled registers, shared memory, and a list of
faults. The exit status is 1 if there is a fault. `--quick` takes the first case of each operation, the cases with sizes
of 1, and one target.

Registers and stack come from the cubin (`cuobjdump` of Triton's wheel; Triton itself knows them only on a device), or
on hip from the metadata in the assembly. A kernel of a main case is wrong if it spills, takes more shared memory than
the chip has, holds no matrix instruction where its case is a product, or no 128-bit load where its case is a copy; and
where its case says so, if threads wait for each other in its longest inner loop, or that has more instructions a number
than the case allows. Loops are what the cubin's machine code (SASS) jumps back to.

Triton must not be in its interpreter (TRITON_INTERPRET): tests run this in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_cases import CASES, Case
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from layercoop_fast.errors import RequestError
from layercoop_fast.files import written_whole
from layercoop_fast.kernels.gpu.frame import Launch, interpreted, recorded

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes that one program may have: A100, H100, B200 (each less the 1 KiB that the system takes), MI300.
SHARED_LIMIT = {"cuda:80": 163 << 10, "cuda:90": 227 << 10, "cuda:100": 227 << 10, "hip:gfx942": 64 << 10}
# The kernels are made to fit with the compilers of Triton 3.9. Those of 3.6 spill some registers at the end of a few,
# and lay out tiles whose numbers are apart by columns, so that gemv's threads exchange inputs.
_TUNED_FOR = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
_SPILLED = 0 if _TUNED_FOR else 64
_MATRIX = re.compile(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma")
_WIDE = re.compile(
    r"ld\.global\S*\.v4\.[bfsu]32|ld\.global\S*\.v2\.[bfsu]64|ld\.global\S*\.v8|cp\.async\.c[ag]\S* .* (0x10|16)|"
    r"(global|buffer|flat)_load_dwordx4|cp\.async\.bulk"
)
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Compiled:
    """One kernel of one case for one chip.

    Attributes:
        registers: of a thread; on hip vector registers.
        spilled: on NVIDIA bytes of stack of a thread; hip: vector registers that went to memory.
        shared: bytes of a program.
        loop: instructions of the longest inner loop, on NVIDIA; 0 without one.
        waits: how often threads wait for each other in a pass of it.
        slots: instructions of it a number, where the case counts numbers; else 0.
    """

    operation: str
    shape: str
    config: str
    kernel: str
    target: str
    warps: int
    registers: int
    spilled: int
    shared: int
    programs: int
    loop: int
    waits: int
    slots: float
    wrong: list[str]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels ahead of time and inspect them.")
    parser.add_argument(
        "--quick", action="store_true", help="the first case of each operation and sizes of 1, for cuda:90"
    )
    parser.add_argument("--operations", default=",".join(CASES), help="files of kernels/gpu, by commas")
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--out", type=Path, help="write the JSON there instead of to standard output")
    options = parser.parse_args()
    targets = ["cuda:90"] if options.quick else options.targets.split(",")
    try:
        found = [asdict(each) for each in compile_all(options.operations.split(","), targets, quick=options.quick)]
        text = json.dumps({"triton": triton.__version__, "compiled": found}, indent=1)
        if options.out is None:
            print(text)
        else:
            with written_whole(options.out, force=True) as path:
                path.write_text(text)
    except RequestError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    wrong = [
        f"{each['kernel']} ({each['shape']}, {each['target']}): {line}" for each in found for line in each["wrong"]
    ]
    print("\n".join(wrong), file=sys.stderr)
    sys.exit(1 if wrong else 0)


def compile_all(
    operations: Sequence[str], targets: Sequence[str], *, quick: bool = False, main_only: bool = False
) -> Iterator[Compiled]:
    """Compile the kernels of these operations; Triton's cache compiles equal kernels of several cases once."""
    for name in targets:
        if name not in TARGETS:
            raise RequestError(f"target: {name} is not one of {', '.join(TARGETS)}")
    for operation in operations:
        if operation not in CASES:
            raise RequestError(f"operation: {operation} is not one of {', '.join(CASES)}")
        found = CASES[operation]()
        for case in _few(found) if quick else found:
            if main_only and not case.main:
                continue
            for target in (each for each in targets if each.startswith(case.targets)):
                yield from compile_case(case, target)


def _few(cases: list[Case]) -> list[Case]:
    """The first case of each operation, and the cases of sizes that Triton makes constants of."""
    first = {case.operation: case for case in reversed(cases)}
    return [*first.values(), *(case for case in cases if not case.main)]


def compile_case(case: Case, target: str) -> list[Compiled]:
    """Compile the kernels that one case launches."""
    if interpreted():
        raise RequestError("nothing can be compiled under TRITON_INTERPRET=1: unset it")
    with recorded() as launches:
        case.run()
    made = [_compile(each, target) for each in launches]
    missing = _missing(case, [_assembly(each) for each in made]) if case.main else []
    found = []
    for each, binary in zip(launches, made, strict=True):
        registers, spilled = _resources_hip(binary) if target.startswith("hip") else _resources_cuda(binary)
        shared = int(binary.metadata.shared)
        wrong = list(missing)
        if case.main and spilled > _SPILLED:
            wrong.append(f"spills {spilled} {'registers' if target.startswith('hip') else 'bytes of a thread'}")
        if shared > SHARED_LIMIT[target]:
            wrong.append(f"takes {shared} bytes of shared memory, the chip has {SHARED_LIMIT[target]}")
        name, config = each.kernel.fn.__name__, each.config
        loop, waits = (0, 0) if target.startswith("hip") else _longest_loop(binary)
        slots = loop / case.per if case.loop == name and case.per else 0.0
        if _TUNED_FOR and case.loop == name and waits:
            wrong.append(f"threads wait for each other {waits} times in a pass of its loop")
        if _TUNED_FOR and case.slots and slots > case.slots:
            wrong.append(f"takes {slots:.2f} instructions a number, {case.slots} are allowed")
        at = (case.operation, case.shape, config.name, name, target, config.warps)
        found.append(Compiled(*at, registers, spilled, shared, math.prod(each.grid), loop, waits, slots, wrong))
    return found


def _compile(launch: Launch, target: str) -> Any:
    options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages, "enable_fp_fusion": True}
    return triton.compile(source(launch), target=TARGETS[target], options=options)


def _missing(case: Case, assemblies: list[str]) -> list[str]:
    missing = []
    if case.dot and not any(_MATRIX.search(text) for text in assemblies):
        missing.append("no matrix instruction")
    if case.wide and not any(_WIDE.search(text) for text in assemblies):
        missing.append("no load of 128 bits")
    return missing


def source(launch: Launch) -> ASTSource:
    """The launch as Triton would specialise it: types, multiples of 16, ones, constants."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | dict(launch.constants)
    constant_names = {each.name for each in launch.kernel.params if each.is_constexpr}
    for place, name in enumerate(names):
        value = values[name]
        if name in constant_names or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[(place,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            attributes[(place,)] = [["tt.divisibility", 16]]  # torch allocates so; views are looked at on a device
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def _assembly(made: Any) -> str:
    return str(made.asm["amdgcn"] if "amdgcn" in made.asm else made.asm["ptx"])


def _shown(made: Any, option: str) -> str:
    """What `cuobjdump` shows of a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def _longest_loop(made: Any) -> tuple[int, int]:
    """Instructions of the longest loop without a loop in it, and barriers among them; zeros without a loop."""
    code = [
        (int(found[1], 16), found[2]) for found in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", _shown(made, "-sass"))
    ]
    jumps = [
        (int(to[1], 16), at)
        for at, instruction in code
        if (to := re.search(r"\bBRA\b.*0x([0-9a-f]+)", instruction)) and int(to[1], 16) < at
    ]
    inner = [
        (to, at)
        for to, at in jumps
        if not any(to <= other[0] and other[1] < at for other in jumps if other != (to, at))
    ]
    bodies = [[each for place, each in code if to <= place <= at] for to, at in inner]
    longest = max(bodies, key=len, default=[])
    return len(longest), sum("BAR." in each for each in longest)


def _resources_cuda(made: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which is used here only where registers do not suffice."""
    shown = _shown(made, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", shown)
    if found is None:
        raise RequestError(f"cuobjdump said nothing about registers: {shown.strip()[:200]}")
    return int(found[1]), int(found[2]) + int(found[3])


def _resources_hip(made: Any) -> tuple[int, int]:
    def count(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s+(\d+)", made.asm["amdgcn"])), default=0)

    return count("vgpr_count"), count("vgpr_spill_count")


if __name__ == "__main__":
    main()
