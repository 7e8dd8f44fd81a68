"""How fast `heal` trains, next to a plain loop of transformers and torch, and to its matrix products alone.

    python benchmarks/healing/bench_heal.py DIR --teacher MODEL [--text SPEC]... [--rounds 3] [--train all] [--memory]

Each way trains the same checkpoint on the same windows (8 x 128 tokens, all weights but the embedding), one step of
each way in turns, so that a busy machine slows all alike; a figure is that of the fastest step of a way:

    plain      AutoModelForCausalLM in fp32 under torch.autocast(bfloat16), torch.optim.AdamW, KL on whole logits
    ours       a step of `heal`
    cached     a step of `heal` with the teacher's most likely tokens read from disk
    products   every matrix product of `ours` (`cached`) once in its shape, in bf16, and nothing else

With --memory plain, ours, cached and head+last:3 each run two steps in a process of their own, for its peak of resident
memory beyond that of a process that has imported everything. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast.healing.loop import Loop, Plan
from layercoop_fast.healing.options import HealRequest
from layercoop_fast.healing.preparing import prepared

WAYS = ("plain", "ours", "cached")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="pruned checkpoint")
    parser.add_argument("--teacher", help="full model; default the small real model")
    parser.add_argument("--text", action="append", help="SPEC to train on; default builtin")
    parser.add_argument("--train", default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", help="of a child: the way that it runs")
    arguments = parser.parse_args()
    arguments.teacher = arguments.teacher or str(small_model())
    if arguments.only:
        sys.stdout.write(f"{peak_of(arguments)}\n")
        return
    result: dict[str, Any] = {
        "benchmark": "healing/heal",
        "machine": machine(),
        "train": arguments.train,
        "batch": arguments.batch,
        "window": arguments.window,
    }
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(arguments, Path(folder))
        live, cached = Loop(plan), Loop(cached_plan(plan, arguments, Path(folder)))
        steps: dict[str, Callable[[], object]] = {
            "plain": plain_step(arguments, plan),
            "ours": lambda: live.step(0.5),
            "cached": lambda: cached.step(0.5),
            "products": products(plan, AutoModelForCausalLM.from_pretrained(arguments.teacher)),
            "products, cached": products(plan, None),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(arguments.rounds + 1):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - started)
    tokens = arguments.batch * arguments.window
    speed = {name: tokens / min(values[1:]) for name, values in seconds.items()}
    result["tokens_per_second"] = {name: round(value, 1) for name, value in speed.items()}
    result["ours ÷ plain"] = round(speed["ours"] / speed["plain"], 2)
    result["cached ÷ plain"] = round(speed["cached"] / speed["plain"], 2)
    result["ours ÷ products"] = round(speed["ours"] / speed["products"], 2)
    result["cached ÷ products"] = round(speed["cached"] / speed["products, cached"], 2)
    if arguments.memory:
        result["peak_memory_mb"] = memory(arguments)
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def plan_of(arguments: argparse.Namespace, folder: Path, train: str | None = None) -> Plan:
    """What `heal` would train."""
    request = HealRequest(
        train=train or arguments.train,
        text=arguments.text or ["builtin"],
        batch=arguments.batch,
        window=arguments.window,
        tokens=10**9,
    )
    return prepared(arguments.folder, arguments.teacher, folder / "state", request).plan


def cached_plan(plan: Plan, arguments: argparse.Namespace, folder: Path) -> Plan:
    """The same student with a teacher on disk, whose tokens are there before the clock runs."""
    request = replace(plan.request, cache_teacher=folder / "words")
    other = prepared(arguments.folder, arguments.teacher, folder / "state", request).plan
    for step in range(arguments.rounds + 1):
        places = other.texts.places(step, arguments.batch)
        other.teacher.targets(places, other.texts.windows(places))
    return other


def plain_step(arguments: argparse.Namespace, plan: Plan) -> Callable[[], object]:
    """What one would write: two models of transformers, autocast, AdamW."""
    student = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(arguments.teacher, dtype=torch.float32).requires_grad_(False)
    student.get_input_embeddings().weight.requires_grad_(False)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    taken = 0

    def step() -> None:
        nonlocal taken
        ids = plan.texts.windows(plan.texts.places(taken, arguments.batch))
        taken += 1
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                expected = teacher(input_ids=ids, use_cache=False).logits
            logits = student(input_ids=ids, use_cache=False).logits
        log_q, log_p = (each.float().log_softmax(-1).flatten(0, 1) for each in (logits, expected))
        functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean").backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def products(plan: Plan, teacher: PreTrainedModel | None) -> Callable[[], object]:
    """The matrix products of one step in bf16: forward, for the gradients of inputs and weights, and the head's."""
    rows = plan.request.batch * plan.request.window
    student = [each for block in plan.blocks.skeleton.blocks for each in block.modules() if isinstance(each, nn.Linear)]
    trained = {parameter.untyped_storage().data_ptr() for parameter in plan.trained.values()}
    shapes: list[tuple[int, int, int]] = []
    for layer in student:
        out, into = layer.weight.shape
        shapes += [(rows, into, out), (rows, out, into)]
        if layer.weight.untyped_storage().data_ptr() in trained:
            shapes.append((out, rows, into))
    if teacher is not None:
        shapes += [
            (rows, each.in_features, each.out_features)
            for each in teacher.modules()
            if isinstance(each, nn.Linear) and each is not teacher.get_output_embeddings()
        ]
    vocabulary, hidden = plan.student.projection.weight.shape
    shapes += [(rows, hidden, vocabulary)] * (1 if teacher is None else 2) + [(rows, vocabulary, hidden)]
    tensors = {
        shape: (torch.randn(shape[0], shape[1]).bfloat16(), torch.randn(shape[2], shape[1]).bfloat16())
        for shape in set(shapes)
    }

    def step() -> None:
        for shape in shapes:
            left, right = tensors[shape]
            functional.linear(left, right)

    return step


def memory(arguments: argparse.Namespace) -> dict[str, float]:
    """Peaks of processes of their own, in MB beyond one that has only imported everything; and what is asked."""
    kinds = ("nothing", "plain", "ours", "cached", "head+last:3")
    command = [sys.executable, __file__, arguments.folder, "--teacher", arguments.teacher]
    command += [part for spec in arguments.text or () for part in ("--text", spec)]
    command += ["--batch", str(arguments.batch), "--window", str(arguments.window)]
    peaks = {
        kind: float(subprocess.run([*command, "--only", kind], check=True, capture_output=True, text=True).stdout)
        for kind in kinds
    }
    found = {kind: round(peaks[kind] - peaks["nothing"], 1) for kind in kinds[1:]}
    sizes = {
        name: sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6
        for name, folder in (("full model", arguments.teacher), ("pruned model", arguments.folder))
    }
    return {**found, **{name: round(size, 1) for name, size in sizes.items()}, "imports": round(peaks["nothing"], 1)}


def peak_of(arguments: argparse.Namespace) -> float:
    """MB at the most, after two steps of a way."""
    kind = arguments.only
    with tempfile.TemporaryDirectory() as folder:
        if kind == "plain":
            step = plain_step(arguments, plan_of(arguments, Path(folder), "norms"))
        elif kind != "nothing":
            plan = plan_of(arguments, Path(folder), None if kind in WAYS else kind)
            if kind == "cached":
                plan = cached_plan(plan, arguments, Path(folder))
            loop = Loop(plan)
            step = lambda: loop.step(0.5)  # noqa: E731
        for _ in range(0 if kind == "nothing" else 2):
            step()
    # The process's own peak: what getrusage tells is inherited from the process that started this one.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
