"""What a GPU is for here, measured on the one that is there: `layercoop-fast bench gpu`, or `make bench-gpu`.

    python benchmarks/gpu/bench_gpu.py [--out bench-gpu.json] [--only kernels,engine,decode,surrogate] [--tiny]

kernels     every Triton kernel against its oracle, torch.compile, and liger-kernel or SDPA where they have the same;
            the recurrence of Qwen3-Next by transformers and by flash-linear-attention
engine      500 masks on 10 × 128 and on 8 × 2048 tokens, an 8B llama and a small one: ours, skipping, the published way
decode      tokens a second of the same models: ours (16, 8, 4 bits), transformers, its static cache, torch.compile
surrogate   values of masks, what each player adds, all 2^30, 2^32, 2^40 masks: ours, torch, torch.compile, C++

Models are random: no network is needed. Writes a JSON file, and next to it a table (.md) ready for docs/performance.md.
What fails is said in both and the rest goes on; the exit status is then 1. Without a GPU it is 2, but for --tiny, which
runs the same code at sizes that mean nothing, kernels in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
PARTS = ("kernels", "engine", "decode", "surrogate")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.json"))
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"{unknown[0]} is not one of {', '.join(PARTS)}")
    if arguments.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the interpreter's results lie on the CPU
    import torch

    if not arguments.tiny and not torch.cuda.is_available():
        sys.stderr.write("bench gpu measures a GPU, and torch sees none here; --tiny runs its code without one\n")
        sys.exit(2)
    from layercoop_fast.files import written_whole

    result, failed = run(parts, tiny=arguments.tiny)
    for path, text in (
        (arguments.out, json.dumps(result, indent=1) + "\n"),
        (arguments.out.with_suffix(".md"), table(result)),
    ):
        with written_whole(path, force=True) as made:
            made.write_text(text, encoding="utf-8")
    sys.stdout.write(table(result))
    sys.exit(1 if failed else 0)


def run(parts: list[str], *, tiny: bool) -> tuple[dict[str, Any], bool]:
    """Measure the parts; a part that fails leaves a line in its place."""
    import torch
    from chips import peak_of
    from machine import machine

    from layercoop_fast.kernels.memory import through_interpreter

    device = torch.device("cpu" if tiny else "cuda")
    name = "none (--tiny)" if tiny else torch.cuda.get_device_name()
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "gpu": name,
        "machine": machine(),
        "triton": __import__("triton").__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "tiny": tiny,
    }
    failed = False

    def part(where: str, measure: Callable[[], Any]) -> None:
        nonlocal failed
        sys.stderr.write(f"{where} ...\n")
        try:
            with through_interpreter() if tiny else nullcontext():
                result[where] = measure()
        except Exception as problem:
            traceback.print_exc()
            result[where] = {"failed": f"{type(problem).__name__}: {problem}"[:300]}
        failed = failed or '"failed' in json.dumps(result[where])
        if not tiny:
            torch.cuda.empty_cache()

    peak = None if tiny else peak_of(name)
    compiler = None if tiny else "inductor"
    dtype = torch.float32 if tiny else torch.bfloat16
    if "kernels" in parts:
        import gpu_kernels

        part(
            "kernels",
            lambda: gpu_kernels.bench(gpu_kernels.TINY if tiny else gpu_kernels.FULL, device, dtype, peak, compiler),
        )
    if "engine" in parts or "decode" in parts:
        import gpu_decode
        import gpu_engine
        from gpu_models import random_llama

        for size in ("tiny",) if tiny else ("small", "8b"):
            model = random_llama(size, device, dtype)
            for windows, tokens in ((2, 6),) if tiny else ((10, 128), (8, 2048)):
                if "engine" in parts:
                    few = 6 if tiny else 500
                    shape = f"engine, {size}, {windows} × {tokens}"
                    part(shape, lambda m=model, w=windows, t=tokens, n=few: gpu_engine.bench(m, w, t, n))
            if "decode" in parts:
                part(f"decode, {size}", lambda m=model: gpu_decode.bench(m, 3 if tiny else 256, peak))
            del model
    if "surrogate" in parts:
        import gpu_networks

        part("surrogate", lambda: gpu_networks.bench(device, tiny=tiny, peak=peak, compiler=compiler))
    return result, failed


def table(result: dict[str, Any]) -> str:
    """What was measured, for people: Markdown."""
    versions = result["machine"]["versions"]
    lines = [f"{result['gpu']}, torch {versions['torch']}, triton {result['triton']}", ""]
    for where, found in result.items():
        if isinstance(found, dict) and "failed" in found:
            lines += [f"{where}: failed: {found['failed']}", ""]
        elif where == "kernels":
            lines += ["| kernel | shape | way | µs | GB/s | TFLOP/s | share of peak |", "|---|---|---|---|---|---|---|"]
            lines += [row for entry in found for row in _kernel_rows(entry)] + [""]
        elif where.startswith("engine"):
            lines += [f"**{where}**: {found['masks']} masks, blocks {found['blocks']}, head {found['head']}", ""]
            lines += ["| way | seconds | ÷ ours |", "|---|---|---|"]
            ours = found["seconds"]["ours"]
            lines += [f"| {way} | {time:.3g} | {time / ours:.2f} |" for way, time in found["seconds"].items()] + [""]
        elif where.startswith("decode"):
            lines += [f"**{where}**: {found['new']} tokens behind {found['prompt']}", ""]
            lines += ["| way | tokens/s | limit on paper | share |", "|---|---|---|---|"]
            for way, speed in found["tokens_a_second"].items():
                limit = found.get("limit", {}).get(way)
                share = found.get("share_of_limit", {}).get(way)
                columns = f"{'' if limit is None else _number(limit)} | {'' if share is None else f'{share:.0%}'}"
                lines.append(f"| {way} | {_number(speed)} | {columns} |")
            lines.append("")
        elif where == "surrogate":
            lines += ["| surrogate | way | seconds | ÷ ours | share of fp32 peak |", "|---|---|---|---|---|"]
            lines += [row for entry in found for row in _surrogate_rows(entry)] + [""]
    return "\n".join(lines)


def _kernel_rows(entry: dict[str, Any]) -> list[str]:
    rows = []
    for way, found in entry["ways"].items():
        begin = f"| {entry['operation']} | {entry['shape']} | {way} |"
        if "failed" in found:
            rows.append(f"{begin} {found['failed'].splitlines()[0][:80]} | | | |")
            continue
        share = f"{found['share_of_peak']:.0%}" if "share_of_peak" in found else ""
        flops = f"{found['tflop_s']:.3g}" if "tflop_s" in found else ""
        rows.append(f"{begin} {found['us']:.3g} | {found['gb_s']:.3g} | {flops} | {share} |")
    return rows


def _surrogate_rows(entry: dict[str, Any]) -> list[str]:
    rows, ours = [], entry["seconds"]["ours"]
    for way, time in entry["seconds"].items():
        ratio = f"{time / ours:.2f}" if isinstance(time, float) and isinstance(ours, float) else ""
        share = f"{entry['share_of_peak']:.0%}" if way == "ours" and "share_of_peak" in entry else ""
        rows.append(f"| {entry['what']} | {way} | {_number(time)} | {ratio} | {share} |")
    return rows


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


if __name__ == "__main__":
    main()
