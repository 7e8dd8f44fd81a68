"""The server under clients of the real `openai` package, in one run; another server next to it where asked.

    python benchmarks/serving/bench_server.py [--seconds 300] [--clients 64] [--masks 8] [--dtype auto]
    python benchmarks/serving/bench_server.py --other URL --other-model NAME   # the same prompts there

steady     streaming clients, each with a mask of its own, for so many seconds: answers, failures, tokens a second, time
           to the first token and between tokens (p50, p99), resident memory a fifth of the way in and at the end, and
           pages in use once all is over
growth     tokens a second of 1, 8 and 16 clients, under one mask and under all
overhead   seconds a token of one streaming client, over the runtime's own in the same process's model
other      the growth of another server that speaks OpenAI's interface, alternating with ours

The server runs in a process of its own; clients are threads of this one and take their share of the processors.
Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

PROMPTS = [
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain how a suspension bridge carries its load, in plain words.",
    "List the steps to repair a bicycle tube.",
    "What did people eat on long voyages two hundred years ago?",
]
TOKENS = 64
ROUNDS = 3


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the steady part; 0 leaves it out")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--masks", type=int, default=8)
    parser.add_argument("--other", help="base URL of another server to ask the same")
    parser.add_argument("--other-model", default="default")
    arguments = parser.parse_args()
    model = arguments.model or str(small_model())
    masks = {f"m{first}": f"{first}-{first + 2}" for first in range(4, 4 + 2 * arguments.masks, 2)}
    with Server(model, arguments.dtype, masks, arguments.clients) as server:
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
        targets: dict[str, tuple[str, list[str]]] = {"ours": (server.url + "/v1", ["bench"])}
        if arguments.other:
            targets["other"] = (arguments.other, [arguments.other_model])
        result["growth"] = growth({**targets, "ours, all masks": (server.url + "/v1", names)})
        result["overhead"] = overhead(server, model, arguments.dtype)
        result["metrics"] = server.metrics()
    sys.stdout.write(json.dumps(result) + "\n")


class Server:
    """`layercoop-fast serve` in a process of its own."""

    def __init__(self, model: str, dtype: str, masks: dict[str, str], parallel: int) -> None:
        command = [sys.executable, "-m", "layercoop_fast", "serve", model, "--name", "bench", "--port", "0"]
        command += ["--dtype", dtype, "--parallel", str(parallel)]
        for name, blocks in masks.items():
            command += ["--mask", f"{name}={blocks}"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        while not (found := re.search(r"on (http://\S+?):? ", said)):
            said += (line := self.process.stderr.readline())
            assert line, said
        self.url = found[1]
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def resident(self) -> int:
        """Bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def metrics(self) -> dict[str, float]:
        """What its page says of keys, values and requests."""
        lines = httpx.get(self.url + "/metrics").text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(found[f"layercoop:{name}"]) for name in ("num_requests_running", "kv_cache_usage_perc")}


class Client(threading.Thread):
    """Asks one question after another, and notes when each token came."""

    def __init__(self, url: str, model: str, number: int, go_on: Callable[[int], bool]) -> None:
        super().__init__(daemon=True)
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
        self.model, self.number, self.go_on = model, number, go_on
        self.first: list[float] = []
        self.between: list[float] = []
        self.tokens = 0
        self.failures: list[str] = []

    def run(self) -> None:
        """Ask until told to stop."""
        asked = 0
        while self.go_on(asked):
            try:
                self._ask(PROMPTS[(self.number + asked) % len(PROMPTS)])
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


def together(url: str, models: list[str], clients: int, go_on: Callable[[int], bool]) -> tuple[list[Client], float]:
    """Run so many clients to their end; they, and the seconds it took."""
    running = [Client(url, models[number % len(models)], number, go_on) for number in range(clients)]
    began = time.perf_counter()
    for each in running:
        each.start()
    for each in running:
        each.join()
    return running, time.perf_counter() - began


def steady(server: Server, names: list[str], clients: int, seconds: float) -> dict[str, Any]:
    """Many clients for a while."""
    ends = time.perf_counter() + seconds
    early: list[int] = []
    timer = threading.Timer(seconds / 5, lambda: early.append(server.resident()))
    timer.start()
    running, took = together(server.url + "/v1", names, clients, lambda _: time.perf_counter() < ends)
    timer.cancel()
    first = np.concatenate([each.first for each in running])
    between = np.concatenate([each.between for each in running])
    late = server.resident()
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


def growth(targets: dict[str, tuple[str, list[str]]]) -> dict[str, Any]:
    """Tokens a second by the number of clients, the servers alternating."""
    found: dict[str, dict[str, Any]] = {name: {} for name in targets}
    for name, (url, models) in targets.items():
        together(url, models, 1, lambda asked: asked < 1)  # not counted
        del name
    for clients in (1, 8, 16):
        for _ in range(ROUNDS):
            for name, (url, models) in targets.items():
                running, took = together(url, models, clients, lambda asked: asked < 2)
                at = found[name].setdefault(str(clients), {"rates": [], "p99": []})
                at["rates"].append(sum(each.tokens for each in running) / took)
                at["p99"].append(float(np.percentile(np.concatenate([each.between for each in running]), 99)))
                assert not any(each.failures for each in running), running[0].failures
    for each in found.values():
        for at in each.values():
            at["tokens_a_second"] = round(float(np.median(at.pop("rates"))), 1)
            at["between_tokens_p99"] = round(float(np.median(at.pop("p99"))), 5)
        each["16 ÷ 1"] = round(each["16"]["tokens_a_second"] / each["1"]["tokens_a_second"], 2)
    return found


def overhead(server: Server, model: str, dtype: str) -> dict[str, float]:
    """Seconds a token through the server and through the runtime, one stream each, alternating."""
    from layercoop_fast import LayerSkipModel

    alone = LayerSkipModel.from_pretrained(model, dtype)
    prompt = alone.tokens(PROMPTS[0])
    served, direct = [], []
    client = httpx.Client(base_url=server.url, timeout=600)
    asked = {"model": "bench", "prompt": list(prompt), "max_tokens": 2 * TOKENS, "temperature": 0, "stream": True}
    asked["ignore_eos"] = True
    for turn in range(2 * ROUNDS + 1):
        times = []
        for _ in alone.stream(prompt, max_new_tokens=2 * TOKENS, ignore_eos=True):
            times.append(time.perf_counter())
        came = []
        with client.stream("POST", "/v1/completions", json=asked) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    came.append(time.perf_counter())
        if turn:
            direct.append((times[-1] - times[0]) / (len(times) - 1))
            served.append((came[-1] - came[0]) / (2 * TOKENS - 1))
    return {
        "runtime_ms": round(1e3 * float(np.median(direct)), 3),
        "server_ms": round(1e3 * float(np.median(served)), 3),
        "ratio": round(float(np.median(np.array(served) / np.array(direct))), 3),
    }


if __name__ == "__main__":
    main()
