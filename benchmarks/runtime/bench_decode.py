"""Decoding and reading with the native executor, next to transformers and llama.cpp; same prompts, greedy; one run.

    python benchmarks/runtime/bench_decode.py [--dtypes fp32,bf16,int8,int4] [--hf] [--threads 2] [--text FILE]
        [--llama-python VENV/bin/python --gguf SmolLM2-135M-Instruct.Q4_1.gguf]

native     for each dtype: tokens a second at 64 and 512 new tokens, and the share of what memory gives (what a loop of
           loads reads between every 32 tokens, over the bytes of a token: weights, keys and values); a prompt of 480
           tokens; milliseconds a token under masks that keep 1.0, 0.9, 0.8 and 0.6 of the blocks, next to their bytes;
           what the process has in memory after loading, over what it had before, as a share of the weights
hf         `generate` of transformers in fp32
llama.cpp  the same model as f32, bf16, Q8_0 and Q4_1, in the environment of `--llama-python`, alternating with ours,
           each 32 tokens; how many tokens are the same; with `--text`, the perplexity of both on the last part of
           a text

Every dtype runs in a process of its own. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from read_memory import read_speed
from small_model import cache_folder, small_model

from layercoop_fast import _C
from layercoop_fast.engine.loading import open_checkpoint, quiet_transformers
from layercoop_fast.texts.calibration import read_text

PROMPT, LONG = 32, 480
PIECE = 32  # tokens of one side, then of the other
TOKENS = 512  # of answers of each length
WINDOWS, WINDOW = 4, 512
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
    parser.add_argument("--text", type=Path, help="a text that the perplexity is read on")
    parser.add_argument("--llama-python", help="python of an environment that has llama-cpp-python")
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
        "native": {dtype: child(dtype, model) for dtype in dtypes},
    }
    answers = {dtype: found.pop("answer") for dtype, found in result["native"].items()}
    if arguments.hf:
        result["hf"] = child("hf", model)
        answer = result["hf"].pop("answer")
        result["hf"]["same_answer_as_native_fp32"] = answer == answers.get("fp32", [])[: len(answer)]
    sys.stdout.write(json.dumps(result) + "\n")


def child(part: str, model: str) -> dict[str, Any]:
    """A part in a process of its own, under the arguments of this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--model", model]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{part}: {json.dumps({key: value for key, value in found.items() if key != 'answer'})}\n")
    return found


def prompts(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The beginning of a text that is always there, of two lengths."""
    ids = tokenizer(read_text("builtin").splitlines()[0] + " " + read_text("builtin")[:8000])["input_ids"]
    return ids[:PROMPT], ids[:LONG]


def windows(tokenizer: Any, text: Path) -> list[list[int]]:
    """The last part of a text, in pieces of WINDOW tokens."""
    ids = tokenizer(text.read_text()[-12 * WINDOWS * WINDOW :])["input_ids"][-WINDOWS * WINDOW :]
    return [ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW)]


def native(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one dtype, and llama.cpp's."""
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
    page = int(executor.pool.page_bytes[0])

    def read() -> float:
        sequence = executor.sequence(everything)
        started = time.perf_counter()
        executor.best([Chunk(sequence, long)])
        seconds = time.perf_counter() - started
        sequence.release()
        return seconds

    llama = Llama(arguments, dtype, prompt, long) if arguments.llama_python else None
    read()
    reading = [(read(), llama.ask("read")["seconds"] if llama else 0.0) for _ in range(5)]
    turns = {count: [] for count in arguments.counts}  # type: ignore[var-annotated]
    answers: list[list[int]] = []
    speeds = [read_speed(arguments.threads)]
    for count in [each for each in arguments.counts for _ in range(max(1, TOKENS // each))]:
        sequence = executor.sequence(everything)
        found = executor.best([Chunk(sequence, prompt)]).tolist()
        theirs = llama.ask("begin")["answer"] if llama else []
        for at in range(0, count, PIECE):
            started = time.perf_counter()
            for _ in range(PIECE):
                found.append(int(executor.best([Chunk(sequence, found[-1:])])[0]))
            seconds = time.perf_counter() - started
            speeds.append(read_speed(arguments.threads, 1))
            taken = executor.weight_bytes + layers * page / 16 * (PROMPT + at + PIECE / 2)
            their_seconds = 0.0
            if llama:
                their_seconds = (answered := llama.ask("go", count=PIECE))["seconds"]
                theirs += answered["answer"]
                speeds.append(read_speed(arguments.threads, 1))
            around = (speeds[-2] + speeds[-3]) / 2 if llama else (speeds[-1] + speeds[-2]) / 2
            turns[count].append((seconds, PIECE * taken / around / seconds, their_seconds))
        sequence.release()
        answers = answers or [found, theirs]
    result = {
        "memory_gb_s": {"median": median(speeds) / 1e9, "most": max(speeds) / 1e9},
        "weight_bytes": executor.weight_bytes,
        "load_seconds": loading,
        "resident_over_weights": (after - before) / executor.weight_bytes,
        "prefill_tok_s": LONG / min(own for own, _ in reading),
        "decode_tok_s": {count: figures(own for own, _, _ in all_) for count, all_ in turns.items()},
        "share_of_memory": {
            count: {
                "median": median(share for _, share, _ in all_),
                "best_of_both": PIECE * executor.weight_bytes / max(speeds) / min(own for own, _, _ in all_),
            }
            for count, all_ in turns.items()
        },
        "kept": kept_fractions(executor, layers, head, prompt),
        "answer": answers[0],
    }
    texts = windows(tokenizer, arguments.text) if arguments.text else []
    if texts:
        result["perplexity"] = perplexity(executor, texts, everything)
    if llama is not None:
        result["llama_cpp"] = {
            **llama.ask("version"),
            "prefill_tok_s": LONG / min(seconds for _, seconds in reading),
            "decode_tok_s": {count: figures(theirs for _, _, theirs in all_) for count, all_ in turns.items()},
            "same_tokens": sum(own == their for own, their in zip(*answers, strict=True)) / len(answers[0]),
            "ours_over_it": {
                "prefill": median(theirs / own for own, theirs in reading),
                "decode": {
                    count: {
                        "median": median(theirs / own for own, _, theirs in all_),
                        "best_of_both": min(theirs for _, _, theirs in all_) / min(own for own, _, _ in all_),
                    }
                    for count, all_ in turns.items()
                },
            },
        }
        if texts:
            result["llama_cpp"]["perplexity"] = llama.ask("perplexity", windows=texts)["perplexity"]
    return rounded(result)


def figures(seconds: Any) -> dict[str, float]:
    """Tokens a second of the pieces."""
    seconds = list(seconds)
    return {"median": PIECE / median(seconds), "most": PIECE / min(seconds)}


def perplexity(executor: Any, texts: list[list[int]], mask: Any) -> float:
    """Of every token but the first of each piece."""
    from layercoop_fast.runtime.executor import Chunk

    losses = []
    for window in texts:
        sequence = executor.sequence(mask)
        logits = executor.run([Chunk(sequence, window[:-1], wanted=len(window) - 1)])
        losses.append(torch.nn.functional.cross_entropy(logits.double(), torch.tensor(window[1:])))
        sequence.release()
    return float(torch.stack(losses).mean().exp())


def kept_fractions(executor: Any, layers: int, head: int, prompt: list[int]) -> dict[str, dict[str, float]]:
    """Milliseconds a token of masks that remove blocks at even distances, alternating, and the bytes that these keep.

    `time` is the median over the turns of a mask's time over that of the whole model just before and after.
    """
    from layercoop_fast.runtime.executor import Chunk

    masks = []
    for fraction in FRACTIONS:
        mask = np.ones(layers, dtype=np.bool_)
        gone = layers - round(fraction * layers)
        mask[(np.arange(gone) * layers // max(1, gone)) + layers // (2 * max(1, gone)) if gone else []] = False
        masks.append(mask)
    sequences = [executor.sequence(mask) for mask in masks]
    for sequence in sequences:
        executor.best([Chunk(sequence, prompt)])

    def some_tokens(sequence: Any) -> float:
        started = time.perf_counter()
        for _ in range(4):
            executor.best([Chunk(sequence, [0])])
        seconds = time.perf_counter() - started
        sequence.truncate(len(prompt))
        return seconds / 4

    ratios: dict[float, list[float]] = {fraction: [] for fraction in FRACTIONS}
    times: dict[float, list[float]] = {fraction: [] for fraction in FRACTIONS}
    before = some_tokens(sequences[0])
    for _ in range(40):
        for fraction, sequence in zip(FRACTIONS, sequences, strict=True):
            own = some_tokens(sequence)
            after = some_tokens(sequences[0])
            times[fraction].append(own)
            ratios[fraction].append(2 * own / (before + after))
            before = after
    return {
        str(fraction): {
            "ms": 1e3 * median(times[fraction]),
            "time": median(ratios[fraction]),
            "least_time": min(times[fraction]) / min(times[1.0]),
            "bytes": (head + float(mask.mean()) * (executor.weight_bytes - head)) / executor.weight_bytes,
        }
        for fraction, mask in zip(FRACTIONS, masks, strict=True)
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


class Llama:
    """llama.cpp in a process of its own, which waits while we compute, on the file of a dtype (made once)."""

    def __init__(self, arguments: argparse.Namespace, dtype: str, prompt: list[int], long: list[int]) -> None:
        kind = FILES[dtype]
        path = arguments.gguf
        if kind != "q4_1":
            path = cache_folder() / f"{arguments.gguf.stem}.{kind}.gguf"
            if not path.exists():
                subprocess.run(
                    [arguments.llama_python, RUNNER, "requantise", arguments.gguf, path, kind], check=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
        asked = json.dumps({"prompt": prompt, "long": long, "threads": arguments.threads})
        self.process = subprocess.Popen(
            [arguments.llama_python, RUNNER, "serve", path, asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Have something done, and wait for it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def rounded(value: Any) -> Any:
    """Numbers to four digits, keys as text."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], float):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
