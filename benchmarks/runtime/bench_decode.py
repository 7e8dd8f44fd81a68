"""Decoding and reading with the native executor, beside transformers and llama.cpp; same prompts, greedy; one run.

    python benchmarks/runtime/bench_decode.py [--dtypes fp32,bf16,int8,int4] [--hf] [--threads 2]
        [--llama-python VENV/bin/python --gguf SmolLM2-135M-Instruct.Q4_1.gguf]

native     for each dtype: tokens a second at 64 and 512 new tokens, and the share of what memory gives (bandwidth read
           in the same process, over the bytes of a token: weights, keys and values); a prompt of 480 tokens;
           milliseconds a token under masks that keep 1.0, 0.9, 0.8 and 0.6 of the blocks, beside their bytes; what
           the process has in memory after loading, over what it had before, as a share of the weights
hf         `generate` of transformers in fp32
llama.cpp  the same model as f32, bf16, Q8_0 and Q4_1, in the environment of `--llama-python`; whether it answers as we

Every part runs in a process of its own. Ends in one JSON line.
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
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import cache_folder, small_model

from layercoop_fast import _C
from layercoop_fast.engine.loading import open_checkpoint, quiet_transformers
from layercoop_fast.game.calibration import read_text

PROMPT, LONG = 32, 480
FRACTIONS = (1.0, 0.9, 0.8, 0.6)
FILES = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0", "int4": "q4_1"}
RUNNER = Path(__file__).with_name("llama_cpp_runner.py")


def main() -> None:
    """Run the benchmark, or a part of it as a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--dtypes", default="fp32,bf16,int8,int4")
    parser.add_argument("--threads", type=int, default=_C.num_threads())
    parser.add_argument("--new", default="64,512", help="lengths of answers")
    parser.add_argument("--hf", action="store_true")
    parser.add_argument("--llama-python", help="python of an environment that has llama-cpp-py-sync")
    parser.add_argument("--gguf", type=Path, help="the model as a GGUF file of type Q4_1")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = arguments.model or str(small_model())
    arguments.counts = [int(count) for count in arguments.new.split(",")]
    dtypes = arguments.dtypes.split(",")
    if arguments.part:
        found = hf(model, arguments) if arguments.part == "hf" else native(model, arguments)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    result: dict[str, Any] = {
        "benchmark": "runtime/decode",
        "machine": machine(),
        "model": Path(model).name,
        "threads": arguments.threads,
        "native": {dtype: child(dtype, model, arguments) for dtype in dtypes},
    }
    answers = {dtype: found.pop("answer") for dtype, found in result["native"].items()}
    if arguments.hf:
        result["hf"] = child("hf", model, arguments)
        answer = result["hf"].pop("answer")
        result["hf"]["same_answer_as_native_fp32"] = answer == answers.get("fp32", [])[: len(answer)]
    if arguments.llama_python:
        result["llama_cpp"] = {}
        for dtype in dtypes:
            found = llama(model, dtype, arguments)
            answer = found.pop("answer")
            found["same_answer"] = answer == answers[dtype]
            ours = result["native"][dtype]
            found["ours_over_it"] = {
                "decode": {
                    str(count): round(ours["decode_tok_s"][str(count)] / found["decode_tok_s"][str(count)], 3)
                    for count in arguments.counts
                },
                "prefill": round(ours["prefill_tok_s"] / found["prefill_tok_s"], 3),
            }
            result["llama_cpp"][dtype] = rounded(found)
    sys.stdout.write(json.dumps(result) + "\n")


def child(part: str, model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--model", model, "--threads", str(arguments.threads)]
    command += ["--new", arguments.new]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{part}: {json.dumps({key: value for key, value in found.items() if key != 'answer'})}\n")
    return found


def prompts(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The beginning of a text that is always there, of two lengths."""
    ids = tokenizer(read_text("builtin").splitlines()[0] + " " + read_text("builtin")[:8000])["input_ids"]
    return ids[:PROMPT], ids[:LONG]


def native(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one dtype."""
    from layercoop_fast.runtime.executor import Chunk
    from layercoop_fast.runtime.opening import open_runtime

    dtype = arguments.part
    _C.set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    config = AutoConfig.from_pretrained(model)
    layers = int(config.num_hidden_layers)
    head = _C.PackedMatrix("int8" if dtype == "int4" else dtype, config.vocab_size, config.hidden_size).nbytes
    if not config.tie_word_embeddings:
        head *= 2  # the embedding table, which a token hardly reads, counts as the head
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config)  # so that code which loads once does not count as weights
    before = resident()
    started = time.perf_counter()
    opened = open_runtime(model, dtype=dtype, executor="native", kv_memory=1 << 28)
    loading = time.perf_counter() - started
    after = resident()
    executor, tokenizer = opened.executor, opened.tokenizer
    prompt, long = prompts(tokenizer)
    everything = np.ones(layers, dtype=np.bool_)

    reading = []
    for _ in range(3):
        sequence = executor.sequence(everything)
        started = time.perf_counter()
        executor.best([Chunk(sequence, long)])
        reading.append(time.perf_counter() - started)
        sequence.release()

    def answer(count: int, mask: Any) -> tuple[float, list[int]]:
        sequence = executor.sequence(mask)
        found = executor.best([Chunk(sequence, prompt)]).tolist()
        started = time.perf_counter()
        for _ in range(count):
            found.append(int(executor.best([Chunk(sequence, found[-1:])])[0]))
        seconds = time.perf_counter() - started
        sequence.release()
        return seconds / count, found

    # Other programs and other machines come and go: bandwidth is the most that was seen between the answers.
    tried: dict[int, list[tuple[float, list[int]]]] = {count: [] for count in arguments.counts}
    gigabytes = bandwidth()
    for count in 2 * arguments.counts:
        tried[count].append(answer(count, everything))
        gigabytes = max(gigabytes, bandwidth())
    seconds = {count: min(times)[0] for count, times in tried.items()}
    page = int(executor.pool.page_bytes[0])
    share = {
        count: (executor.weight_bytes + layers * page / 16 * (PROMPT + count / 2)) / value / gigabytes / 1e9
        for count, value in seconds.items()
    }
    return rounded(
        {
            "bandwidth_gb_s": gigabytes,
            "weight_bytes": executor.weight_bytes,
            "load_seconds": loading,
            "resident_over_weights": (after - before) / executor.weight_bytes,
            "prefill_tok_s": LONG / min(reading),
            "decode_tok_s": {count: 1 / value for count, value in seconds.items()},
            "share_of_bandwidth": share,
            "kept": kept_fractions(executor, layers, head, answer),
            "answer": tried[arguments.counts[0]][0][1],
        }
    )


def kept_fractions(executor: Any, layers: int, head: int, answer: Any) -> dict[str, dict[str, float]]:
    """Milliseconds a token of masks that remove blocks at even distances, in turns, beside the bytes that they keep."""
    masks = {}
    for fraction in FRACTIONS:
        mask = np.ones(layers, dtype=np.bool_)
        gone = layers - round(fraction * layers)
        mask[(np.arange(gone) * layers // max(1, gone)) + layers // (2 * max(1, gone)) if gone else []] = False
        masks[fraction] = mask
    times: dict[float, list[float]] = {fraction: [] for fraction in FRACTIONS}
    for _ in range(4):
        for fraction, mask in masks.items():
            times[fraction].append(answer(32, mask)[0])
    found = {fraction: min(values) for fraction, values in times.items()}
    kept = {f: (head + masks[f].mean() * (executor.weight_bytes - head)) / executor.weight_bytes for f in FRACTIONS}
    return {
        str(fraction): {
            "ms": 1e3 * found[fraction],
            "time": found[fraction] / found[1.0],
            "bytes": float(kept[fraction]),
        }
        for fraction in FRACTIONS
    }


def hf(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """`generate` of transformers, fp32."""
    torch.set_num_threads(arguments.threads)
    opened = open_checkpoint(model, dtype="float32")
    prompt, long = prompts(opened.tokenizer)
    rates, answer = {}, []
    with torch.inference_mode(), quiet_transformers():
        for count in arguments.counts:
            started = time.perf_counter()
            settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": count, "min_new_tokens": count}
            found = opened.model.generate(torch.tensor([prompt]), **settings)
            rates[count] = count / (time.perf_counter() - started)
            answer = answer or found[0, len(prompt) :].tolist()
        reading = []
        for _ in range(3):
            started = time.perf_counter()
            opened.model(torch.tensor([long]), logits_to_keep=1)
            reading.append(time.perf_counter() - started)
    return rounded({"decode_tok_s": rates, "prefill_tok_s": len(long) / min(reading), "answer": answer})


def llama(model: str, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """llama.cpp on the file of this dtype, which is made once."""
    kind = FILES[dtype]
    path = arguments.gguf
    if kind != "q4_1":
        path = cache_folder() / f"{arguments.gguf.stem}.{kind}.gguf"
        if not path.exists():
            subprocess.run(
                [arguments.llama_python, RUNNER, "requantise", arguments.gguf, path, kind], check=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
    prompt, long = prompts(open_checkpoint(model).tokenizer)
    asked = json.dumps({"prompt": prompt, "long": long, "new": arguments.counts, "threads": arguments.threads})
    done = subprocess.run(
        [arguments.llama_python, RUNNER, "run", path, asked], check=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bandwidth() -> float:
    """GB/s at which all threads read memory far larger than the caches."""
    numbers = torch.ones(1 << 27)  # 512 MiB
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return 4 * len(numbers) / min(seconds) / 1e9


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def rounded(value: Any) -> Any:
    """Numbers to four digits, keys as text."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
