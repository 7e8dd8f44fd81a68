"""What keeping weights as int8 or int4 takes and costs: seconds of packing a model's matrices, and perplexity; one run.

    python benchmarks/runtime/bench_formats.py --text novels.txt --text jargon.txt [--windows 3] [--tokens 512]

packing      seconds to pack every matrix of the model (the fastest of a few repeats) from bf16 and from fp32
perplexity   the model in fp32, its matrices replaced by what the packed ones unpack to (head in int8 for int4, as the
             runtime has it), on windows of the last part of each text

Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from machine import machine
from packed_linear import PackedLinear
from small_model import small_model

from layercoop_fast import _C
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.texts.calibration import read_text

FORMATS = ("int8", "int4")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--text", action="append", default=[], help="a text file; default builtin-heldout")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _C.set_num_threads(arguments.threads)
    model = arguments.model or str(small_model())
    result: dict[str, Any] = {
        "benchmark": "runtime/formats",
        "machine": machine(),
        "isa": _C.isa(),
        "threads": arguments.threads,
        "packing_seconds": {dtype: packing(model, dtype, arguments.repeats) for dtype in ("bfloat16", "float32")},
        "perplexity": {},
    }
    for format in (None, *FORMATS):
        opened = open_checkpoint(model, dtype="float32")
        if format is not None:
            replace(opened.model, format)
        for text in arguments.text or ["builtin-heldout"]:
            ids = opened.tokenizer(read_text(text)[-16 * arguments.windows * arguments.tokens :])["input_ids"]
            value = perplexity(opened.model, ids[-arguments.windows * arguments.tokens :], arguments.tokens)
            result["perplexity"].setdefault(Path(text).name, {})[format or "as they are"] = round(value, 3)
            print(f"{Path(text).name}: {format or 'as they are'}: {value:.3f}")
    sys.stdout.write(json.dumps(result) + "\n")


def matrices(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps by name; a head that shares the embedding's weight is one of them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def packing(model: str, dtype: str, repeats: int) -> dict[str, float]:
    """Seconds to pack all matrices in each format."""
    found = matrices(open_checkpoint(model, dtype=dtype).model)
    seconds = {}
    for format in FORMATS:
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            for module in found.values():
                PackedLinear(module.weight.detach(), format, origin=torch.bfloat16)
            took.append(time.perf_counter() - began)
        seconds[format] = round(min(took), 2)
    print(f"packing from {dtype}: {seconds}")
    return seconds


@torch.inference_mode()
def replace(model: nn.Module, format: str) -> None:
    """Put into each matrix what its packed form stands for."""
    for name, module in matrices(model).items():
        kept = "int8" if name.endswith("lm_head") else format
        packed = PackedLinear(module.weight.detach(), kept, origin=torch.bfloat16)
        weight = nn.Parameter(packed.unpack(), requires_grad=False)
        module.weight = weight  # a tied embedding keeps its own numbers, as it does in the runtime


@torch.inference_mode()
def perplexity(model: Any, ids: list[int], tokens: int) -> float:
    """Of the next token, over windows of so many."""
    windows = torch.tensor(ids).view(-1, tokens)
    losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in windows]
    return math.exp(sum(losses) / len(losses))


if __name__ == "__main__":
    main()
