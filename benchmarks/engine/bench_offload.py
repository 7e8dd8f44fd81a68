"""Masks of a model three times as large as the memory its process may have, against the same model in memory.

    python benchmarks/engine/bench_offload.py [--layers 28] [--hidden 2048] [--tokens 128] [--in-flight 1 8 64]

Writes a random llama in bf16 into a temporary folder and removes it afterwards. Every run is a process of its own. The
one that streams blocks may have a third of the file's size in all (RLIMIT_DATA: interpreter, libraries and stacks of
threads included); before its masks are timed the system is asked to drop what it kept of the file. The resident run has
no limit. Seconds are wall time of one evaluation of so many masks, after one that is not counted; states of all of them
fit, so each block is read once for all. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

from layercoop_fast import ModelGame, Skeleton, stratified_masks
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.spans import READING, Spans
from layercoop_fast.texts.calibration import Calibration

WINDOWS, VOCABULARY = 2, 8192
TIMES_MEMORY = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=128, help="a window, of which there are two")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--folder", type=Path, help="where the model is written; a temporary folder in it is removed")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, *numbers = arguments.child
        child(Path(folder), *map(int, numbers))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place) / "model"
        write_model(folder, arguments.layers, arguments.hidden)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        limit = size // TIMES_MEMORY
        rate = disk_rate(folder)
        print(f"{size / 1e9:.2f} GB of weights, limit {limit / 1e9:.2f} GB, the disk gives {rate / 1e9:.2f} GB/s cold")
        runs = []
        for masks in arguments.in_flight:
            resident, streamed = (run(folder, most, masks, arguments.tokens) for most in (0, limit))
            assert resident.pop("nll") == streamed.pop("nll"), "worths differ"
            ratio = streamed["seconds"] / resident["seconds"]
            runs.append({"masks": masks, "resident": resident, "streamed": streamed, "ratio": round(ratio, 3)})
            print(
                f"{masks} masks in flight: {streamed['seconds'] / masks:.3f} s a mask, {ratio:.2f} of resident; "
                f"{streamed['bytes_read'] / 1e9:.2f} GB read, {streamed['waited']:.2f} s waited for them"
            )
    result = {
        "benchmark": "engine/offload",
        "machine": machine(),
        "layers": arguments.layers,
        "hidden": arguments.hidden,
        "tokens": WINDOWS * arguments.tokens,
        "file_bytes": size,
        "limit_bytes": limit,
        "disk_bytes_a_second": round(rate),
        "runs": runs,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def write_model(folder: Path, layers: int, hidden: int) -> None:
    """A random llama in bf16 and nothing else: the text is of random words."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 512,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="1GB")
    for file in folder.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())  # what is not on the disk yet cannot be dropped from memory


def drop_from_cache(folder: Path) -> None:
    """Ask the system to forget what it kept of the weights."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(folder: Path) -> float:
    """Bytes a second of the weights read once from the disk, in pieces of 16 MiB."""
    drop_from_cache(folder)
    room = bytearray(2**24)
    count = 0
    started = time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while got := opened.readinto(room):
                count += got
    return count / (time.perf_counter() - started)


def run(folder: Path, limit: int, masks: int, tokens: int) -> dict[str, Any]:
    """One process's measurement; a limit of 0 is the resident run."""
    command = [sys.executable, __file__, "--child", str(folder), str(limit), str(masks), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a run failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(folder: Path, limit: int, masks: int, tokens: int) -> None:
    """Measure masks, in memory or streamed under a limit."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    opening = time.perf_counter()
    checkpoint = open_checkpoint(str(folder), offload=bool(limit))
    skeleton = Skeleton(checkpoint.model, streamed=checkpoint.streamed)
    ids = torch.randint(VOCABULARY, (WINDOWS, tokens), generator=torch.Generator().manual_seed(0))
    game = ModelGame(checkpoint, Calibration(ids, "random"), skeleton=skeleton)
    game.masked.memory = 128 * game.masked.windows.state_bytes  # room for the states of all masks in flight
    game.evaluate(np.ones((1, game.n_players), dtype=np.bool_))
    opening = time.perf_counter() - opening
    peak = 0

    def watch(stage: str, done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    game.masked.flops  # noqa: B018 - counted now, since progress goes by it
    game.on_progress = watch
    drop_from_cache(folder)
    before = game.masked.weights_read
    with Spans() as spans:
        measured = game.evaluate(stratified_masks(game.n_players, masks))
    found = {
        "seconds": round(spans.wall, 3),
        "seconds_a_mask": round(spans.wall / masks, 4),
        "opening": round(opening, 3),
        "bytes_read": game.masked.weights_read - before,
        "waited": round(spans.seconds[READING], 3),
        "peak_anonymous_bytes": peak,
        "nll": measured.nll.tolist(),
    }
    print(json.dumps(found))


def anonymous_bytes() -> int:
    """Anonymous memory of this process that is in use."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
