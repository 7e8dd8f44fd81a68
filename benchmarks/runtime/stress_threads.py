"""One model, many threads: every answer is compared with the one that a single thread got.

    python benchmarks/runtime/stress_threads.py [MODEL] [--threads 8] [--requests 200] [--executor auto] [--dtype fp32]

Each thread asks for `--requests` answers: `generate` of one prompt or of a list, `stream` read to its end, closed, let
go of, thrown into or never begun; prompts that begin alike, whole masks and halves, greedy, with a repetition penalty,
or drawn with a seed, answers of 1 to 24 tokens, some with drafts (greedy: drawn ones are not the same tokens for a
seed). Keys and values have room for a few requests only, and a thread lets go of those kept for later, and asks for
memory and counts. Answers of streams that were broken off must be the beginning of the right one.

MODEL is a checkpoint folder; "small" is the small real model; by default a tiny random one of three blocks. Ends in one
JSON line, and with status 1 unless every answer is right and nothing is left.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import LayerSkipModel, Sampling

LONGEST = 24  # tokens of an answer
PREFIXES = (0, 7, 20, 33, 48)  # tokens that prompts share
ENDS = ("read", "close", "let go", "throw", "never begun")
DISTINCT = 96  # different answers at most; each is asked for some ten times or more


@dataclass(frozen=True, eq=False)
class Asked:
    """Arguments of `generate` and `stream`."""

    prompt: tuple[int, ...]
    mask: np.ndarray
    tokens: int
    sampling: Sampling
    draft: np.ndarray | None

    @property
    def arguments(self) -> dict[str, Any]:
        """All but the prompt."""
        return {
            "mask": self.mask,
            "max_new_tokens": self.tokens,
            "sampling": self.sampling,
            "draft": self.draft,
            "ignore_eos": True,
        }


def main() -> None:
    """Run it and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint folder, or small; default a tiny random model")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200, help="of each thread")
    parser.add_argument("--executor", default="auto")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = small_model() if arguments.model == "small" else arguments.model or tiny(folder)
        model = LayerSkipModel.from_pretrained(path, arguments.dtype, executor=arguments.executor)
        tighten(model)
        started = time.perf_counter()
        found = stress(model, arguments.threads, arguments.requests, arguments.seed)
    line = {
        "benchmark": "runtime/stress_threads",
        "machine": machine(),
        "model": str(arguments.model or "tiny"),
        "executor": model.executor.name,
        "threads": arguments.threads,
        "seconds": round(time.perf_counter() - started, 1),
        **found,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.exit(0 if found["right"] == found["asked"] and not found["left"] else 1)


def tiny(folder: str) -> str:
    """A random llama of three blocks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tighten(model: LayerSkipModel) -> None:
    """Leave room for some five requests of the longest prompt, so that some wait and some give way."""
    pool = model.executor.pool
    pages = -(-(PREFIXES[-1] + 16 + LONGEST) // 16)
    pool.budget = min(pool.budget, 5 * pages * int(pool.page_bytes.sum()))


def different(model: LayerSkipModel, count: int, longest: int, random: np.random.Generator) -> list[Asked]:
    """Requests whose answers are to be told apart."""
    words = model.executor.vocab_size
    n = model.n_layers
    stem = random.integers(words, size=PREFIXES[-1]).tolist()
    masks = [np.ones(n, dtype=np.bool_), np.arange(n) != 1, np.arange(n) != n - 1]
    if model.executor.rewindable:
        masks.append(np.arange(2 * n) != 2)
    found = []
    for number in range(count):
        end = random.integers(words, size=int(random.integers(1, 16))).tolist()
        prompt = (*stem[: int(random.choice(PREFIXES))], *end)
        sampling = (
            Sampling(),
            Sampling(temperature=1.0, top_k=8, seed=number),
            Sampling(temperature=0.8, top_p=0.9, seed=number),
            Sampling(repetition_penalty=1.3),
        )[number % 4]
        drafts = model.executor.rewindable and sampling.greedy and number % 8 < 4
        mask = masks[0] if drafts else masks[int(random.integers(len(masks)))]
        draft = np.arange(n) != 1 if drafts else None
        found.append(Asked(prompt, mask, int(random.integers(1, longest + 1)), sampling, draft))
    return found


def stress(model: LayerSkipModel, threads: int, requests: int, seed: int = 0, longest: int = LONGEST) -> dict[str, Any]:
    """Ask for `requests` answers of at most `longest` tokens from each of `threads` threads.

    Returns how many were `asked` and `right`, `wrong` and `errors` by kind, how they `ended`, and what is `left` in the
    model: requests, and bytes of keys and values once those kept for later are let go of.
    """
    count = min(DISTINCT, max(4, threads * requests // 10))
    asked = different(model, count, longest, np.random.default_rng(seed))
    alone = {"max_new_tokens": longest, "draft": None}  # of these all others are beginnings
    greedy = [one for one in asked if one.sampling.greedy]
    right = {one: model.generate(one.prompt, **{**one.arguments, **alone}).tokens for one in asked}
    model.forget()
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    lock = threading.Lock()
    together = threading.Barrier(threads)

    def ask(number: int) -> None:
        random = np.random.default_rng([seed, number])
        together.wait()
        done = 0
        while done < requests:
            some = [asked[int(random.integers(len(asked)))]]
            if random.random() < 0.2:
                # What the others of a list draw depends on their place, so these are greedy.
                some += [greedy[int(at)] for at in random.integers(len(greedy), size=2)]
            some = some[: requests - done]
            done += len(some)
            how = "list" if len(some) > 1 else str(random.choice(["generate", *ENDS]))
            try:
                held = [good(how, one, found) for one, found in zip(some, say(how, some), strict=True)]
            except Exception as error:
                with lock:
                    errors[f"{type(error).__name__}: {error}"[:200]] += len(some)
                continue
            with lock:
                counts["right"] += sum(held)
                counts["wrong"] += len(held) - sum(held)
                ended[how] += len(held)
            if random.random() < 0.05:
                model.memory()
                model.drafting()
                model.forget()

    def say(how: str, some: list[Asked]) -> list[list[int]]:
        if how == "list":
            answers = model.generate(
                [one.prompt for one in some], [one.mask for one in some], max_new_tokens=longest,
                sampling=[one.sampling for one in some], ignore_eos=True,
            )  # fmt: skip
            return [answer.tokens for answer in answers]
        (one,) = some
        if how == "generate":
            return [model.generate(one.prompt, **one.arguments).tokens]
        return [broken_off(how, model.stream(one.prompt, **one.arguments), one.tokens)]

    def broken_off(how: str, steps: Any, tokens: int) -> list[int]:
        if how == "never begun":
            steps.close()
            return []
        found = []
        for step in steps:
            found.append(step.token)
            if how != "read" and len(found) > tokens // 2:
                break
        if how == "close":
            steps.close()
        if how == "throw":
            with suppress(KeyError):
                steps.throw(KeyError("on purpose"))
        return found

    def good(how: str, one: Asked, found: list[int]) -> bool:
        tokens = {"list": longest, "generate": one.tokens, "read": one.tokens}.get(how, len(found))
        return found == right[one][:tokens]

    runs = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(threads)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    batcher = model.batcher
    left = {"running": len(batcher.running), "waiting": len(batcher.waiting)}
    model.forget()
    left["bytes"] = model.memory()["kv"]
    return {
        "asked": threads * requests,
        "right": counts["right"],
        "wrong": counts["wrong"],
        "errors": dict(errors),
        "ended": dict(ended),
        "left": {name: value for name, value in left.items() if value},
    }


if __name__ == "__main__":
    main()
