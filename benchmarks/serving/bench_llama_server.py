"""The server next to llama.cpp's, on the same machine, in one run.

    python benchmarks/serving/bench_llama_server.py --llama-server PATH --gguf bf16=MODEL-BF16.gguf \
        --gguf int8=MODEL-Q8_0.gguf [--clients 1,8] [--masks 8] [--rounds 5] [--part pair] [--part masks] \
        [--threads-each 1] [--python PATH]

pair    streamed completions of 1 and 8 clients, by the type of the weights: tokens a second, seconds to the first token
        and between tokens (p50, p99) of both servers by turns. The one whose turn it is not is stopped.
masks   8 masks, a client each: our one server, and 8 files cut by these masks in 8 llama-servers of --threads-each
        threads. Tokens a second, and memory (PSS) after the last answer.

Both get the same prompts and write the same number of tokens, greedily, past the token that ends a text. `llama-server`
runs with all processors, a slot a client and continuous batching; it is told to keep no prompts of the past, which
takes memory and time and finds nothing here, where no two prompts begin alike. --python is for an environment that has
what `pip install layercoop-fast[serve]` brings and no more: transformers imports what else it finds (torchao, scipy,
triton), and that is in memory then.

The GGUF files are those that llama.cpp's `convert_hf_to_gguf.py MODEL --outtype bf16` (`q8_0`) writes. Ends in one JSON
line; ratios are ours over llama.cpp's, the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from servers import Llama, Ours, Server
from small_model import small_model
from streams import Answer, Ask, ask_together, prompts

from layercoop_fast.export.gguf import cut_gguf
from layercoop_fast.masks.text import parse_removed

TOKENS = 96


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", required=True, help="llama.cpp's program of that name")
    parser.add_argument("--gguf", action="append", required=True, metavar="DTYPE=FILE", help="DTYPE is our --dtype")
    parser.add_argument("--model", help="checkpoint folder of the same weights; default the small real model")
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--masks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads-each", type=int, default=1, help="of llama.cpp's servers in the part masks")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs our server")
    parser.add_argument("--part", action="append", choices=["pair", "masks"], help="default both")
    arguments = parser.parse_args()
    model = arguments.model or str(small_model())
    result: dict[str, Any] = {
        "benchmark": "serving/llama_server",
        "machine": machine(),
        "model": Path(model).name,
        "tokens": TOKENS,
        "rounds": arguments.rounds,
    }
    for dtype, file in (each.split("=", 1) for each in arguments.gguf):
        found = result[dtype] = {"gguf": Path(file).name}
        for part in arguments.part or ["pair", "masks"]:
            if part == "pair":
                clients = [int(each) for each in arguments.clients.split(",")]
                found[part] = pair(model, dtype, Path(file), clients, arguments)
            else:
                found[part] = many_masks(model, dtype, Path(file), arguments)
    sys.stdout.write(json.dumps(result) + "\n")


def pair(model: str, dtype: str, gguf: Path, clients: list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Both servers under 1 and more clients."""
    most, threads, found = max(clients), len(os.sched_getaffinity(0)), dict[str, Any]()
    with (
        Ours(model, dtype, parallel=most, python=arguments.python) as ours,
        Llama(arguments.llama_server, gguf, most, threads) as theirs,
    ):
        for count in clients:
            names = {"ours": [(ours, "bench")] * count, "llama.cpp": [(theirs, "default")] * count}
            found[str(count)] = by_turns(names, arguments.rounds)
    return found


def many_masks(model: str, dtype: str, gguf: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One server of ours under so many masks, and so many of theirs over cut files."""
    masks = {f"m{first}": f"{first}-{first + 2}" for first in range(4, 4 + 2 * arguments.masks, 2)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        theirs = []
        for name, removed in masks.items():
            file = folder / f"{name}.gguf"
            cut_gguf(gguf, parse_removed(removed), file, verify=False)
            theirs.append(stack.enter_context(Llama(arguments.llama_server, file, 1, arguments.threads_each)))
        ours = stack.enter_context(Ours(model, dtype, masks, parallel=len(masks), python=arguments.python))
        teams: dict[str, list[tuple[Server, str]]] = {
            "ours": [(ours, f"bench:{name}") for name in masks],
            "llama.cpp": [(server, "default") for server in theirs],
        }
        found = by_turns(teams, arguments.rounds)
        memory = {"ours": ours.memory(), "llama.cpp": sum(server.memory() for server in theirs)}
    found["memory_mib"] = {name: round(size / 2**20, 1) for name, size in memory.items()}
    found["memory, ours ÷"] = round(memory["ours"] / memory["llama.cpp"], 3)
    return found


def by_turns(teams: dict[str, list[tuple[Server, str]]], rounds: int) -> dict[str, Any]:
    """What each team of (server, model) a client does with the same prompts; the other teams are stopped meanwhile."""
    rates: dict[str, list[float]] = {name: [] for name in teams}
    answers: dict[str, list[Answer]] = {name: [] for name in teams}
    everyone = {server for team in teams.values() for server, _ in team}
    for turn in range(rounds + 1):  # the first one is not counted
        for name, team in teams.items():
            for server in everyone - {server for server, _ in team}:
                server.pause()
            texts = prompts(len(team), first=1 + turn * len(team))
            asks = [Ask(each.url, model, text, TOKENS) for (each, model), text in zip(team, texts, strict=True)]
            came, seconds = ask_together(asks)
            for server in everyone:
                server.go_on()
            if turn:
                rates[name].append(TOKENS * len(team) / seconds)
                answers[name].extend(came)
    found: dict[str, Any] = {name: told(rates[name], answers[name]) for name in teams}
    for name in list(teams)[1:]:
        at = found[name]
        at["ours ÷"] = round(float(np.median(np.array(rates["ours"]) / np.array(rates[name]))), 3)
        at["same answers"] = float(
            np.mean([mine.text == other.text for mine, other in zip(answers["ours"], answers[name], strict=True)])
        )
    return found


def told(rates: list[float], answers: list[Answer]) -> dict[str, Any]:
    """The figures of a server's turns."""
    first = [answer.first for answer in answers]
    between = np.concatenate([answer.between for answer in answers])
    return {
        "tokens_a_second": round(float(np.median(rates)), 1),
        "best": round(max(rates), 1),
        "first_token": {f"p{q}": round(float(np.percentile(first, q)), 4) for q in (50, 99)},
        "between_tokens": {f"p{q}": round(float(np.percentile(between, q)), 5) for q in (50, 99)},
        "tokens_without_text": sum(answer.tokens - 1 - len(answer.between) for answer in answers),
    }


if __name__ == "__main__":
    main()
