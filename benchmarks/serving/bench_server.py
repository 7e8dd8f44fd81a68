"""The server under many clients, in one run.

    python benchmarks/serving/bench_server.py [--seconds 300] [--clients 64] [--masks 8] [--dtype auto]

steady     streaming clients of the `openai` package, each with a mask of its own, for so many seconds: answers,
           failures, tokens a second, time to the first token and between tokens (p50, p99), resident memory a fifth of
           the way in and at the end, and requests that run once all is over
growth     tokens a second of 1, 8 and 16 clients, under one mask and under all
overhead   seconds a token of one streaming client, over the runtime's own on a model in this process, by turns

The server runs in a process of its own. Its clients share the processors with it: those of `steady` are threads of the
`openai` package; the others read plain sockets (`streams.py`), and `overhead` has both. No two prompts begin alike, so
that none is computed once for several clients. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from servers import Ours
from small_model import small_model
from streams import Ask, ask_together, prompts

TOKENS = 64
ROUNDS = 5


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the steady part; 0 leaves it out")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--masks", type=int, default=8)
    parser.add_argument("--kv-memory", default="512MiB", help="of the server; it is filled within the first seconds")
    arguments = parser.parse_args()
    model = arguments.model or str(small_model())
    masks = {f"m{first}": f"{first}-{first + 2}" for first in range(4, 4 + 2 * arguments.masks, 2)}
    with Ours(model, arguments.dtype, masks, arguments.clients, arguments.kv_memory) as server:
        names = [f"bench:{name}" for name in masks]
        result: dict[str, Any] = {
            "benchmark": "serving/server",
            "machine": machine(),
            "model": Path(model).name,
            "dtype": arguments.dtype,
            "tokens": TOKENS,
        }
        if arguments.seconds:
            result["steady"] = steady(server, names, arguments.clients, arguments.seconds)
        result["growth"] = growth(server, {"one mask": ["bench"], "all masks": names})
        result["overhead"] = overhead(server, model, arguments.dtype)
        result["metrics"] = server.metrics()
    sys.stdout.write(json.dumps(result) + "\n")


class Client(threading.Thread):
    """Asks one question after another by the `openai` package, and notes when each token came."""

    def __init__(self, url: str, model: str, number: int, go_on: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=600)
        self.model, self.number, self.go_on = model, number, go_on
        self.first: list[float] = []
        self.between: list[float] = []
        self.tokens = 0
        self.failures: list[str] = []

    def run(self) -> None:
        """Ask until told to stop."""
        asked = 0
        while self.go_on():
            try:
                self._ask(prompts(1, first=1000 * self.number + asked)[0])
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            asked += 1

    def _ask(self, prompt: str) -> None:
        began = time.perf_counter()
        stream = self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        last = 0.0
        for piece in stream:
            now = time.perf_counter()
            if piece.usage is not None:
                self.tokens += piece.usage.completion_tokens
            elif last:
                self.between.append(now - last)
                last = now
            else:
                self.first.append(now - began)
                last = now


def resident(server: Ours) -> int:
    """Bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def steady(server: Ours, names: list[str], clients: int, seconds: float) -> dict[str, Any]:
    """Many clients for a while."""
    began = time.perf_counter()
    early: list[int] = []
    timer = threading.Timer(seconds / 5, lambda: early.append(resident(server)))
    timer.start()
    running = [
        Client(server.url, names[number % len(names)], number, lambda: time.perf_counter() < began + seconds)
        for number in range(clients)
    ]
    for each in running:
        each.start()
    for each in running:
        each.join()
    took = time.perf_counter() - began
    timer.cancel()
    first = np.concatenate([each.first for each in running])
    between = np.concatenate([each.between for each in running])
    late = resident(server)
    return {
        "clients": clients,
        "masks": len(names),
        "seconds": round(took, 1),
        "answers": len(first),
        "failures": sum(len(each.failures) for each in running),
        "failure": next((each.failures[0] for each in running if each.failures), None),
        "tokens_a_second": round(sum(each.tokens for each in running) / took, 1),
        "first_token": {f"p{q}": round(float(np.percentile(first, q)), 4) for q in (50, 99)},
        "between_tokens": {f"p{q}": round(float(np.percentile(between, q)), 5) for q in (50, 99)},
        "resident_mib": [round(each / 2**20, 1) for each in (*early, late)],
        "resident_growth": round(late / early[0] - 1, 4) if early else None,
        "after": server.metrics(),
    }


def growth(server: Ours, models: dict[str, list[str]]) -> dict[str, Any]:
    """Tokens a second by the number of clients."""
    found: dict[str, dict[str, Any]] = {name: {} for name in models}
    rates: dict[tuple[str, int], list[float]] = {}
    gaps: dict[tuple[str, int], list[float]] = {}
    counts, asked = (1, 8, 16), 0
    for turn in range(ROUNDS + 1):  # the first one is not counted
        for count in counts:
            for name, names in models.items():
                texts = prompts(count, first=asked)
                asked += count
                asks = [Ask(server.url, names[at % len(names)], text, TOKENS) for at, text in enumerate(texts)]
                answers, seconds = ask_together(asks)
                if turn:
                    rates.setdefault((name, count), []).append(TOKENS * count / seconds)
                    gaps.setdefault((name, count), []).extend(gap for each in answers for gap in each.between)
    for name, at in found.items():
        for count in counts:
            at[str(count)] = {
                "tokens_a_second": round(float(np.median(rates[name, count])), 1),
                "between_tokens_p99": round(float(np.percentile(gaps[name, count], 99)), 5),
            }
        ratios = np.array(rates[name, 16]) / np.array(rates[name, 1])
        at["16 ÷ 1"] = round(float(np.median(ratios)), 2)
    return found


def overhead(server: Ours, model: str, dtype: str) -> dict[str, Any]:
    """Seconds a token through the server, by each client, and through the runtime, one stream each, by turns.

    Between both: the runtime where another process wakes for each token and does no more. No client on the same
    machine can cost less.
    """
    from layercoop_fast import LayerSkipModel

    alone = LayerSkipModel.from_pretrained(model, dtype)
    tokens = 2 * TOKENS
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=600)

    def runtime(prompt: str) -> list[float]:
        return [time.perf_counter() for _ in alone.stream(prompt, max_new_tokens=tokens, ignore_eos=True)]

    def waking(prompt: str) -> list[float]:
        command = [sys.executable, "-c", "import os\nwhile os.read(0, 1): pass"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as reader:
            assert reader.stdin is not None
            times = []
            for _ in alone.stream(prompt, max_new_tokens=tokens, ignore_eos=True):
                os.write(reader.stdin.fileno(), b".")
                times.append(time.perf_counter())
        return times

    def sockets(prompt: str) -> list[float]:
        (answer,), _ = ask_together([Ask(server.url, "bench", prompt, tokens)])
        return [answer.first, answer.last]

    def package(prompt: str) -> list[float]:
        stream = client.completions.create(
            model="bench", prompt=prompt, max_tokens=tokens, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        return [time.perf_counter() for _ in stream]

    ways = {"runtime": runtime, "a process that wakes": waking, "plain sockets": sockets, "openai": package}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(2 * ROUNDS + 1):
        for name, way in ways.items():
            times = way(prompts(1, first=10_000 + turn)[0])
            if turn:
                taken[name].append((times[-1] - times[0]) / (tokens - 1))
    base = np.array(taken["runtime"])
    return {
        name: {
            "token_ms": round(1e3 * float(np.median(seconds)), 3),
            "÷ runtime": round(float(np.median(np.array(seconds) / base)), 3),
        }
        for name, seconds in taken.items()
    }


if __name__ == "__main__":
    main()
