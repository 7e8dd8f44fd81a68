"""Eight masks on one copy of the weights, against eight exported checkpoints in turn; one run.

    python benchmarks/runtime/bench_masks.py [--dtype fp32] [--executor auto] [--remove 6] [--tokens 64]

together   8 requests, each with a prompt and a mask of its own, in one batch on one copy of the weights: answers a
           second, and what the process has in memory beyond what it had before the model was opened
one        the first of these requests alone on that one copy
in turn    the same requests on 8 exported checkpoints, each opened alone, by the same executor (opening is not timed)
prefill    one prompt under 8 masks that agree on the first half of the blocks: read together, and one after the other

Both ways must say the same tokens (fp32; elsewhere the share that agrees is told). Memory is read in fresh processes.
Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from clock import best
from machine import machine
from small_model import small_model

from layercoop_fast import LayerSkipModel
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.texts.calibration import read_text

MASKS = 8
PROMPT_TOKENS = 64


def main() -> None:
    """Run the benchmark, or a part of it as a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--executor", default="auto")
    parser.add_argument("--remove", type=int, default=6, help="blocks of each mask that go")
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the shared prompt")
    parser.add_argument("--turns", type=int, default=MASKS, help="how many of the exported checkpoints are opened")
    parser.add_argument("--part", choices=("together", "one", "turn", "prefill"), help=argparse.SUPPRESS)
    parser.add_argument("--folders", nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = arguments.model or str(small_model())
    if arguments.part:
        part = {"together": together, "one": one, "turn": turn, "prefill": prefill}[arguments.part]
        sys.stdout.write(json.dumps(part(model, arguments)) + "\n")
        return
    folder = Path(tempfile.mkdtemp())
    try:
        folders = export_all(model, folder, arguments.remove)[: arguments.turns]
        found = {part: child(part, model, arguments, folders) for part in ("together", "one", "turn", "prefill")}
    finally:
        shutil.rmtree(folder)
    all_, each = found["together"], found["turn"]
    same = np.array(each.pop("answers")) == np.array(all_.pop("answers")[: arguments.turns])
    result = {
        "benchmark": "runtime/masks",
        "machine": machine(),
        "model": Path(model).name,
        "dtype": arguments.dtype,
        "masks": MASKS,
        "removed": arguments.remove,
        "new_tokens": arguments.tokens,
        "turns": arguments.turns,
        **found,
        "same_tokens": round(float(same.mean()), 4),
        "speed_ratio": round(all_["tokens_a_second"] / each["tokens_a_second"], 3),
        "memory_ratio_to_one": round(all_["memory_bytes"] / found["one"]["memory_bytes"], 3),
        "memory_ratio_to_one_exported": round(all_["memory_bytes"] / each["memory_bytes"], 3),
    }
    sys.stdout.write(json.dumps(result) + "\n")


def child(part: str, model: str, arguments: argparse.Namespace, folders: list[str]) -> dict[str, Any]:
    """A part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--model", model, "--folders", *folders]
    for name in ("dtype", "executor", "remove", "tokens", "prompt"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def masks_of(n_layers: int, remove: int, first: int) -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    """Eight different masks that keep the blocks before `first` and remove so many of the others."""
    generator = np.random.default_rng(0)
    found: dict[bytes, np.ndarray[Any, np.dtype[np.bool_]]] = {}
    while len(found) < MASKS:
        mask = np.ones(n_layers, dtype=np.bool_)
        mask[generator.choice(np.arange(first, n_layers), remove, replace=False)] = False
        found.setdefault(mask.tobytes(), mask)
    return list(found.values())


def export_all(model: str, folder: Path, remove: int) -> list[str]:
    """The checkpoint of each mask."""
    opened = open_checkpoint(model)
    skeleton = Skeleton(opened.model)
    folders: list[str] = []
    for index, mask in enumerate(masks_of(skeleton.n_layers, remove, 1)):
        folders.append(str(folder / str(index)))
        export_checkpoint(
            opened.model, np.flatnonzero(mask).tolist(), Path(folders[-1]), blocks_path=skeleton.blocks_path,
            tokenizer=opened.tokenizer,
        )  # fmt: skip
    return folders


def prompts_of(model: LayerSkipModel, count: int, length: int) -> list[tuple[int, ...]]:
    """Stretches of text that every Python brings."""
    tokens = model.tokens(read_text("builtin")[: 12 * count * length])
    return [tokens[at * length : (at + 1) * length] for at in range(count)]


def together(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All requests in one batch."""
    before = resident()
    model = LayerSkipModel.from_pretrained(path, arguments.dtype, executor=arguments.executor)
    prompts = prompts_of(model, MASKS, PROMPT_TOKENS)
    masks = masks_of(model.n_layers, arguments.remove, 1)
    model.generate(prompts[0], max_new_tokens=2)
    model.forget()
    began = time.perf_counter()
    answers = model.generate(prompts, masks, max_new_tokens=arguments.tokens, ignore_eos=True)
    seconds = time.perf_counter() - began
    return {
        "executor": model.executor.name,
        "tokens_a_second": round(MASKS * arguments.tokens / seconds, 2),
        "weight_bytes": model.memory()["weights"],
        "kv_bytes": model.memory()["kv"],
        "memory_bytes": resident() - before,
        "answers": [answer.tokens for answer in answers],
    }


def one(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One request on the whole model."""
    before = resident()
    model = LayerSkipModel.from_pretrained(path, arguments.dtype, executor=arguments.executor)
    prompt, mask = prompts_of(model, MASKS, PROMPT_TOKENS)[0], masks_of(model.n_layers, arguments.remove, 1)[0]
    answer = model.generate(prompt, mask, max_new_tokens=arguments.tokens, ignore_eos=True)
    return {
        "tokens_a_second": round(arguments.tokens / answer.seconds, 2),
        "memory_bytes": resident() - before,
    }


def turn(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Each request on its own checkpoint; memory is that of one of them, the first, before any other was opened."""
    before = resident()
    seconds, memory, answers, prompts = 0.0, 0, [], []
    for index, folder in enumerate(arguments.folders):
        model = LayerSkipModel.from_pretrained(folder, arguments.dtype, executor=arguments.executor)
        prompts = prompts or prompts_of(model, MASKS, PROMPT_TOKENS)
        model.generate(prompts[index], max_new_tokens=2)
        model.forget()
        began = time.perf_counter()
        answers.append(model.generate(prompts[index], max_new_tokens=arguments.tokens, ignore_eos=True).tokens)
        seconds += time.perf_counter() - began
        memory = memory or resident() - before
        weight_bytes = model.memory()["weights"]
        del model
        gc.collect()
    return {
        "tokens_a_second": round(len(answers) * arguments.tokens / seconds, 2),
        "weight_bytes": weight_bytes,
        "memory_bytes": memory,
        "answers": answers,
    }


def prefill(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One prompt under masks that agree on half of the blocks."""
    model = LayerSkipModel.from_pretrained(path, arguments.dtype, executor=arguments.executor)
    half = model.n_layers // 2
    masks = masks_of(model.n_layers, arguments.remove, half)
    (prompt,) = prompts_of(model, 1, arguments.prompt)

    def read(groups: list[list[Any]]) -> None:
        for group in groups:
            model.generate([prompt] * len(group), group, max_new_tokens=1, ignore_eos=True)
            model.forget()

    computed = model.executor.computed
    read([masks])
    shared = model.executor.computed - computed
    read([[mask] for mask in masks])
    separate = model.executor.computed - computed - shared
    seconds = {
        "together": best(time.perf_counter, lambda: read([masks]), 2),
        "separate": best(time.perf_counter, lambda: read([[mask] for mask in masks]), 2),
    }
    return {
        "prompt_tokens": len(prompt),
        "blocks_in_common": half,
        "block_evaluations_ratio": round(shared / separate, 3),
        "tokens_a_second": {way: round(MASKS * len(prompt) / took, 1) for way, took in seconds.items()},
        "seconds_ratio": round(seconds["together"] / seconds["separate"], 3),
    }


def resident() -> int:
    """Bytes this process has in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
