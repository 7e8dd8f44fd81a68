"""Write docs/kernels.md: what every kernel must move and compute at real shapes, and what compilers make of it.

    python tests/support/kernel_page.py [--out docs/kernels.md]

Nothing in it is measured: bytes and operations are counted from the shapes (`Case`), times are the least by an H100's
data sheet, registers and memory come from the compilers (`tests/support/ahead_of_time.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import triton
from ahead_of_time import TARGETS, Compiled, compile_all
from kernel_cases import CASES, Case

from layercoop_fast.errors import RequestError
from layercoop_fast.files import written_whole

# NVIDIA's data sheet of the H100 SXM: HBM3 bytes, dense bf16 and plain fp32 operations, each a second.
BANDWIDTH, MATRIX, PLAIN = 3.35e12, 989e12, 67e12

_HEAD = """# GPU kernels on paper

Written by `python tests/support/kernel_page.py`; no row is by hand, and **none is a measurement**.

## What an H100 needs at least

Bytes are inputs and outputs once; FLOP are those of matrix units (bf16), other operations count in fp32 lanes, a
multiply-add as two, an instruction at half rate as four. The least time is the largest of bytes over 3.35 TB/s, FLOP
over 989 TFLOP/s and operations over 67 TFLOP/s, by the chip's data sheet (SXM). Where that is less than some
microseconds, launching takes longer.

"""
_MIDDLE = """
## What compilers make of it

Registers of a thread / bytes of shared memory of a program, compiled with Triton {version} for each chip without
having it; "spilled" follows where registers went to memory. Chips: A100 (`cuda:80`), H100 (`cuda:90`), B200
(`cuda:100`), MI300 (`hip:gfx942`, vector registers; its warps have 64 threads). "Loop" is the longest inner loop of the
H100's machine code: instructions of a pass / barriers among them, and instructions for each weight where a case counts
weights: 132 processors issue 4 × 32 a cycle, so that 117 million weights of 4 bits at 4.3 a weight take 17 µs of issue
at 1.76 GHz, and their bytes 21.9 µs. `make test-all` checks that nothing spills, that products use matrix instructions
and copies loads of 128 bits, that no barrier stands in the loops of `_one_row` and of the enumeration, and the
instructions a weight. By Triton 3.6 three spill some bytes
of a thread: paged_attention on B200 (long 8, wide 24) and linear_cross_entropy on H100 (large 8); and gemv of one row
takes 4.6 to 5.9 instructions a weight on H100, with 66 barriers in a pass of its loop.

"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write docs/kernels.md.")
    parser.add_argument("--out", type=Path, default=Path("docs/kernels.md"))
    options = parser.parse_args()
    try:
        text = page()
        with written_whole(options.out, force=True) as path:
            path.write_text(text)
    except RequestError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def page() -> str:
    """The whole page; compiles everything."""
    compiled = list(compile_all(list(CASES), list(TARGETS), main_only=True))
    return _HEAD + roofline(all_cases()) + _MIDDLE.format(version=triton.__version__) + _compiled(compiled)


def all_cases() -> list[Case]:
    """The cases of every operation."""
    return [case for cases in CASES.values() for case in cases() if case.main]


def roofline(cases: Sequence[Case]) -> str:
    """The first table: one row an operation and shape."""
    rows = {(case.operation, case.shape): case for case in cases}
    lines = [
        "| operation | shape | bytes | FLOP | other operations | bound by | least time |",
        "|---|---|---|---|---|---|---|",
    ]
    for (operation, shape), case in rows.items():
        times = {
            "memory": case.bytes / BANDWIDTH,
            "matrix units": case.flops / MATRIX,
            "fp32 units": case.operations / PLAIN,
        }
        bound = max(times, key=lambda name: times[name])
        sizes = (_short(case.bytes, "B"), _short(case.flops), _short(case.operations))
        lines.append(f"| {operation} | {shape} | {' | '.join(sizes)} | {bound} | {_time(times[bound])} |")
    return "\n".join(lines) + "\n"


def _compiled(found: Sequence[Compiled]) -> str:
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    loops: dict[tuple[str, ...], str] = {}
    for each in found:
        text = f"{each.registers} / {each.shared:,}" + (f", spilled {each.spilled}" if each.spilled else "")
        about = (each.operation, each.kernel, each.config, str(each.warps), each.shape)
        cells.setdefault(about, {})[each.target] = text
        if each.target == "cuda:90" and each.loop:
            slots = f", {each.slots:.1f} a weight" if each.slots else ""
            loops[about] = f"{each.loop} / {each.waits}{slots}"
    names = list(TARGETS)
    heads = ["operation", "kernel", "config", "warps", "shape", *names, "loop"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row, by_target in cells.items():
        of_chips = " | ".join(by_target.get(name, "") for name in names)
        lines.append(f"| {' | '.join(row)} | {of_chips} | {loops.get(row, '')} |")
    return "\n".join(lines) + "\n"


def _short(number: int, unit: str = "") -> str:
    if number == 0:
        return ""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number} {unit}".strip()


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


if __name__ == "__main__":
    main()
