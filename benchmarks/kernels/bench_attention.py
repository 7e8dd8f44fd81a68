"""Our causal attention inside short windows and its slopes next to torch's, by length of the window; one run.

    python benchmarks/kernels/bench_attention.py [--dtype bfloat16] [--threads 1] [--clock cpu]

Both attend over the same numbers: ours on the joint projection of queries, keys and values, torch's
`scaled_dot_product_attention` on views of it, causal, with grouped queries. Slopes are those of the joint projection,
torch's by its backward pass alone. Results are compared first. Times are milliseconds a window, the fastest of a few
repeats. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from clock import CLOCKS, best, set_up
from machine import machine

from layercoop_fast import _C
from layercoop_fast.kernels.attention import causal_attention, causal_attention_slopes

# Query heads, key heads, width of a head; the first are those of the small real model.
SHAPES = {"9/3x64": (9, 3, 64), "4/4x128": (4, 4, 128)}
TOKENS = {"9/3x64": (128, 512, 1024, 2048), "4/4x128": (128, 1024, 4096)}
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    now = set_up(arguments.clock, arguments.threads)
    rows = {}
    for name, (heads, kv_heads, width) in SHAPES.items():
        for tokens in TOKENS[name]:
            torch.manual_seed(0)
            dtype = getattr(torch, arguments.dtype)
            qkv = torch.randn(tokens, (heads + 2 * kv_heads) * width).to(dtype).requires_grad_()
            slope = torch.randn(tokens, heads * width).to(dtype)
            found = milliseconds(now, qkv, slope, heads, kv_heads, TOLERANCE[arguments.dtype], arguments.repeats)
            rows[f"{name} {tokens}"] = found
            shown = ", ".join(f"{what} {value:9.3f} ms" for what, value in found.items())
            print(f"{name:>8} {tokens:>5} tokens: {shown}")
    result = {
        "benchmark": "kernels/attention",
        "machine": machine(),
        "isa": _C.isa(),
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def milliseconds(
    now: Callable[[], float],
    qkv: torch.Tensor,
    slope: torch.Tensor,
    heads: int,
    kv_heads: int,
    tolerance: float,
    repeats: int,
) -> dict[str, float]:
    """Milliseconds by what is done, for one window: qkv [T, (heads + 2 * kv_heads) * D], slope [T, heads * D]."""
    tokens, width = len(qkv), slope.shape[1] // heads
    scale = width**-0.5
    shape = tokens, heads, kv_heads, scale
    views = qkv.view(1, tokens, heads + 2 * kv_heads, width).transpose(1, 2)
    queries, keys, values = torch.split(views, [heads, kv_heads, kv_heads], dim=1)

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )

    result = attend().transpose(1, 2).reshape(tokens, -1)

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            return attend()

    def their_slopes() -> torch.Tensor:
        return torch.autograd.grad(result, qkv, slope, retain_graph=True)[0]

    given, mixed = qkv.detach(), result.detach()
    out = torch.empty_like(mixed)
    ways = {
        "ours": lambda: causal_attention(given, *shape, out=out),
        "torch": theirs,
        "ours, slopes": lambda: causal_attention_slopes(slope, given, mixed, *shape),
        "torch, slopes": their_slopes,
    }
    torch.testing.assert_close(ways["ours"](), mixed, atol=tolerance, rtol=0.02)
    torch.testing.assert_close(ways["ours, slopes"](), their_slopes(), atol=4 * tolerance, rtol=0.02)
    return {name: round(1e3 * best(now, way, repeats), 3) for name, way in ways.items()}


if __name__ == "__main__":
    main()
