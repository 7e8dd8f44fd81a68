"""How the time of a plan grows with masks, tokens and layers, what it allocates, and how much memory it takes.

    python benchmarks/masked/bench_growth.py [--plot growth.html]

Random llamas of hidden 256 in bf16, masks of the published strata. Seconds are wall time of one evaluation each. An
exponent is the slope of log seconds over log size: 1 is linear, masks stay below it because they share prefixes. Memory
is the peak of anonymous memory above the process's baseline after import, in a process of its own, over weights and
budget. Allocations are those that torch's allocator makes inside blocks while a plan runs. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.report.html.charts import Axis, Point, Series, xy
from layercoop_fast.report.html.page import page
from layercoop_fast.texts.calibration import Calibration

HIDDEN, LAYERS, TOKENS, WINDOWS = 256, 16, 64, 4
AXES: dict[str, list[int]] = {
    "masks": [100, 300, 1_000, 3_000, 10_000],
    "tokens": [32, 64, 128, 256],
    "layers": [8, 16, 32, 64],
}
MASKS = 300  # where tokens and layers grow
MEMORY_HIDDEN, MEMORY_STATES = 1024, 64


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", help="HTML file to write")
    parser.add_argument("--memory-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_child:
        memory_child()
        return
    seconds = {
        "masks": [measure(masks=count) for count in AXES["masks"]],
        "tokens": [measure(tokens=count) for count in AXES["tokens"]],
        "layers": [measure(layers=count) for count in AXES["layers"]],
    }
    exponents = {
        axis: round(float(np.polyfit(np.log(sizes), np.log(seconds[axis]), 1)[0]), 3) for axis, sizes in AXES.items()
    }
    for axis, sizes in AXES.items():
        steps = ", ".join(f"{size}: {took:.2f} s" for size, took in zip(sizes, seconds[axis], strict=True))
        print(f"{axis}: {steps}; exponent {exponents[axis]}")
    if arguments.plot:
        plot(seconds, arguments.plot)
    done = subprocess.run(
        [sys.executable, __file__, "--memory-child"], capture_output=True, text=True, check=True
    ).stdout
    result = {
        "benchmark": "engine/growth",
        "machine": machine(),
        "sizes": AXES,
        "seconds": {axis: [round(took, 3) for took in times] for axis, times in seconds.items()},
        "exponents": exponents,
        "allocations": allocations(),
        "memory": json.loads(done),
    }
    sys.stdout.write(json.dumps(result) + "\n")


def game_of(layers: int, tokens: int, hidden: int = HIDDEN, windows: int = WINDOWS, **options: Any) -> ModelGame:
    """A random llama in bf16, and text of random words."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=4096,
        max_position_embeddings=tokens,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(4096, (windows, tokens), generator=torch.Generator().manual_seed(0))
    return ModelGame(Checkpoint(model, None, "random"), Calibration(ids, "random"), **options)


def measure(masks: int = MASKS, tokens: int = TOKENS, layers: int = LAYERS) -> float:
    """Seconds to measure so many masks."""
    game = game_of(layers, tokens)
    game.evaluate(np.ones((1, layers), dtype=np.bool_))  # what is made at the first use is made now
    asked = stratified_masks(layers, masks)
    started = time.perf_counter()
    game.evaluate(asked)
    return time.perf_counter() - started


def allocations() -> dict[str, float]:
    """Allocations of tensors and their bytes, a block evaluation, while a plan runs (heads included)."""
    game = game_of(LAYERS, TOKENS)
    asked = stratified_masks(LAYERS, MASKS)
    game.evaluate(asked[:50])
    before = game.evaluations.layer_evals
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watched:
        game.evaluate(asked)
    events = [event for event in watched.events() or [] if event.name == "[memory]"]
    sizes = [event.self_cpu_memory_usage if hasattr(event, "self_cpu_memory_usage") else 0 for event in events]
    gained = [size for size in sizes if size > 0]
    evaluations = game.evaluations.layer_evals - before
    return {
        "a_block_evaluation": round(len(gained) / evaluations, 3),
        "bytes_a_block_evaluation": round(sum(gained) / evaluations, 1),
        "state_bytes": game.masked.windows.state_bytes,
    }


def memory_child() -> None:
    """Peak anonymous memory of a run above what import left, over weights and budget."""
    baseline = anonymous_bytes("RssAnon")
    game = game_of(12, 128, hidden=MEMORY_HIDDEN, windows=10)
    weights = sum(p.numel() * p.element_size() for p in game.checkpoint.model.parameters())
    game.masked.memory = MEMORY_STATES * game.masked.windows.state_bytes
    peak = 0

    def watch(stage: str, done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes("RssAnon"))

    game.on_progress = watch
    rng = np.random.default_rng(0)
    game.evaluate(rng.random((400, 12)) < 0.6)
    used = peak - baseline
    print(
        json.dumps(
            {
                "weights": weights,
                "budget": game.masked.memory,
                "peak_above_baseline": used,
                "over_weights_and_budget": round(used / (weights + game.masked.memory), 3),
            }
        )
    )


def anonymous_bytes(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def plot(seconds: dict[str, list[float]], path: str) -> None:
    """Seconds over size, both axes logarithmic."""
    series = []
    for colour, (axis, times) in enumerate(seconds.items()):
        sizes = AXES[axis]
        points = [Point(size, took, f"{size} {axis}: {took:.2f} s") for size, took in zip(sizes, times, strict=True)]
        series.append(Series(axis, points, colour))
    title = "Seconds of one evaluation"
    chart = xy(series, Axis("size", log=True), Axis("seconds", log=True), title)
    Path(path).write_text(page(title, chart), encoding="utf-8")


if __name__ == "__main__":
    main()
