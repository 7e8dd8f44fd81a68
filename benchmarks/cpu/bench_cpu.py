"""What a CPU is for here, measured on the one that is there: `layercoop-fast bench cpu`, or `make bench-cpu`.

    python benchmarks/cpu/bench_cpu.py [--out bench-cpu.json] [--only machine,135m,...] [--tiny] [--long] [--afresh]
        [--formats bf16,int8,int4] [--threads 2]

machine    bytes a second that a loop of loads reads, operations a second of torch's products
135m       SmolLM2-135M-Instruct in each format: decoding with 1 to 16 requests, behind short and long contexts;
           prompts; eight requests under eight masks against eight under one
1b, 3b     the same of random weights in the shapes of Llama-3.2-1B and Qwen2.5-3B
engine     measuring masks: time of the plan's products over the whole, in both shapes of `bench_blocks.py`

Where peers are built (`benchmarks/peers/*.sh`), each figure is taken by turns with llama.cpp's and ik_llama.cpp's
`llama-batched-bench` on files of the same numbers, as many bits and as many threads: the ratios are medians over the
turns. Both peers run with flash attention, ik_llama.cpp with its weights repacked at the start (-rtr) where that is the
faster way for the row. Where a loop of loads is the limit, `share` is bytes of weights, keys and values of a step over
what that loop read in the same turn.

Each part is a process of its own. A JSON file, and next to it a table (.md) ready for docs/performance.md, are written
after each row; what fails is said in both, and the rest goes on. Run again, the benchmark measures what is missing
(--afresh: everything). `--long` has more batches and contexts. The exit status is 1 where something failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from parts import Suite

# Of each part the module whose `rows` it runs, and its limit in seconds.
PARTS = {
    "machine": ("cpu_machine", 60),
    "135m": ("cpu_decode", 900),
    "1b": ("cpu_decode", 1500),
    "3b": ("cpu_decode", 1800),
    "engine": ("cpu_engine", 600),
}
FORMATS = "bf16,int8,int4"


def main() -> None:
    """Run the benchmark, or one part of it in this process."""
    from layercoop_fast import _C

    suite = Suite(Path(__file__), PARTS, head, bench)
    parser = suite.parser(__doc__, Path("bench-cpu.json"))
    parser.add_argument("--formats", default=FORMATS, help=f"of weights: fp32,{FORMATS}")
    parser.add_argument("--threads", type=int, default=_C.num_threads())
    parser.add_argument("--calibration", default="builtin", help="SPEC of the text of part engine")
    options = parser.parse_args()
    sys.exit(suite.run(options))


def bench(options: argparse.Namespace) -> Any:
    """What the parts need to know."""
    from cpu_models import Bench
    from cpu_peers import peers_here

    return Bench(
        part="tiny" if options.tiny else options.part,
        formats=tuple(options.formats.split(",")),
        threads=options.threads,
        calibration=options.calibration,
        long=options.long,
        peers=tuple(peers_here(options.threads)),
    )


def head(options: argparse.Namespace) -> dict[str, Any]:
    """What a file begins with."""
    from cpu_peers import peers_here
    from machine import machine

    from layercoop_fast import _C

    here: dict[str, Any] = machine()
    peers = dict.fromkeys(peer.name for peer in peers_here(options.threads))  # each once, in whatever ways it runs
    title = f"{here['processor']}, {options.threads} threads, {_C.isa()} ({_C.dots()})"
    return {
        "benchmark": "cpu",
        "title": f"{title}, beside {' and '.join(peers)}" if peers else title,
        "machine": here,
        "tiny": options.tiny,
    }


if __name__ == "__main__":
    main()
