"""Our causal attention inside short windows next to torch's, by length of the window; one run.

    python benchmarks/kernels/bench_attention.py [--dtype bfloat16] [--threads 1] [--clock cpu]

Both attend over the same numbers: ours on the joint projection of queries, keys and values, torch's
`scaled_dot_product_attention` on views of it, causal, with grouped queries. Both results are compared first. Times are
milliseconds a window, the fastest of a few repeats. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from clock import CLOCKS, best, set_up
from machine import machine

from layercoop_fast import _C
from layercoop_fast.kernels.attention import causal_attention

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
    with torch.inference_mode():
        for name, (heads, kv_heads, width) in SHAPES.items():
            for tokens in TOKENS[name]:
                torch.manual_seed(0)
                qkv = torch.randn(tokens, (heads + 2 * kv_heads) * width).to(getattr(torch, arguments.dtype))
                views = qkv.view(1, tokens, heads + 2 * kv_heads, width).transpose(1, 2)
                queries, keys, values = torch.split(views, [heads, kv_heads, kv_heads], dim=1)
                out = qkv.new_empty(tokens, heads * width)
                scale = width**-0.5

                def ours(qkv=qkv, tokens=tokens, heads=heads, kv_heads=kv_heads, scale=scale, out=out):
                    return causal_attention(qkv, tokens, heads, kv_heads, scale, out=out)

                def theirs(queries=queries, keys=keys, values=values, scale=scale):
                    return torch.nn.functional.scaled_dot_product_attention(
                        queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
                    )

                expected = theirs()[0].transpose(0, 1).reshape(tokens, -1)
                torch.testing.assert_close(ours(), expected, atol=TOLERANCE[arguments.dtype], rtol=0.02)
                seconds = best(now, ours, arguments.repeats), best(now, theirs, arguments.repeats)
                milliseconds = [round(1e3 * each, 3) for each in seconds]
                rows[f"{name} {tokens}"] = {"ours": milliseconds[0], "torch": milliseconds[1]}
                print(f"{name:>8} {tokens:>5} tokens: ours {milliseconds[0]:9.3f} ms, torch {milliseconds[1]:9.3f} ms")
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


if __name__ == "__main__":
    main()
