"""Measuring masks: the time of a plan's products over the whole, as `bench_blocks.py` takes it.

In bf16, or in fp32 where torch's products in bf16 are slow on this processor: the model's own blocks would take minutes
a mask there, and nobody would run them so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cpu_models import Bench
from parts import Rows

from layercoop_fast.kernels.precision import is_slow

SCRIPT = Path(__file__).parents[1] / "llama" / "bench_blocks.py"


def rows(bench: Bench) -> Rows:
    """The small real model, and random weights of a wider one."""
    if bench.tiny:
        yield "random 2 × 64", partial(_plan, bench, "--random", "2x64", "--masks", "2", "--repeats", "1")
        return
    yield "SmolLM2-135M", partial(_plan, bench, "--masks", "12", "--repeats", "2")
    yield "random 16 × 2,048", partial(_plan, bench, "--random", "16x2048", "--masks", "2", "--repeats", "1")


def _plan(bench: Bench, *options: str) -> dict[str, Any]:
    dtype = "float32" if is_slow(torch.bfloat16) else "bfloat16"
    command = [sys.executable, str(SCRIPT), "--calibration", bench.calibration, "--dtype", dtype, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    plan = json.loads(done.stdout.splitlines()[-1])["plan"]
    return {
        "dtype": dtype,
        "ms": plan["whole"],
        "products ÷ whole": plan["products_over_whole"],
        "products and attention ÷ whole": plan["products_and_attention_over_whole"],
        "÷ the model's own blocks": plan["hf_over_whole"],
    }
