"""Decoding and prompts of one model in each format, by turns with the peers; eight masks against one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from cpu_models import Bench
from cpu_peers import Peer, Run
from parts import Rows
from read_memory import read_speed

from layercoop_fast import _C
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.opening import open_runtime
from layercoop_fast.runtime.pages import PAGE

TURNS = 3
SETTLE = 0.3  # seconds after which no thread of the calls before waits without sleeping
SHORT = 16  # tokens of a prompt that hardly counts
MASKS = 8


@dataclass(frozen=True)
class Sizes:
    """What is measured of a model: requests at once, contexts of a request alone, lengths of prompts, new tokens."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    new: int


_QUICK = {
    "135m": Sizes((1, 8), (512,), (512,), 32),
    "1b": Sizes((1, 8), (512,), (512,), 24),
    "3b": Sizes((1, 8), (), (512,), 8),
    "tiny": Sizes((1, 2), (20,), (33,), 3),
}
_LONG = Sizes((1, 2, 4, 8, 16), (512, 4096), (128, 512, 2048), 32)


def rows(bench: Bench) -> Rows:
    """All rows of a model, a format after the other."""
    torch.set_num_threads(bench.threads)
    _C.set_num_threads(bench.threads)
    sizes = _LONG if bench.long and not bench.tiny else _QUICK[bench.part]
    for format in bench.formats:
        ours = _Ours(bench, format)
        for batch in sizes.batches:
            run = Run(SHORT, sizes.new, batch)
            yield f"{format}, decode, {batch} at once", partial(_decode, bench, ours, run)
        for context in sizes.contexts:
            run = Run(context, sizes.new)
            yield f"{format}, decode behind {context}", partial(_decode, bench, ours, run)
        for length in sizes.prompts:
            yield f"{format}, prompt of {length}", partial(_prompt, bench, ours, Run(length, 1))
        yield f"{format}, {MASKS} masks", partial(_masks, ours, sizes.new)


class _Ours:
    """The model in a format, opened when it is first used."""

    def __init__(self, bench: Bench, format: str) -> None:
        self.bench, self.format = bench, format
        self._executor: Executor | None = None

    @property
    def executor(self) -> Executor:
        if self._executor is None:
            memory = 1 << (22 if self.bench.tiny else 31)
            folder = self.bench.folder
            self._executor = open_runtime(folder, dtype=self.format, executor="native", kv_memory=memory).executor
        return self._executor

    def tokens(self, count: int, seed: int) -> list[int]:
        """Some tokens: other ones for each seed, so that no two requests share their beginning."""
        return np.random.default_rng(seed).integers(3, self.executor.vocab_size, count).tolist()  # type: ignore[no-any-return]

    def seconds(self, run: Run, masks: Sequence[Any] | None = None) -> tuple[float, float]:
        """Seconds of the prompts, and of the answers behind them."""
        executor = self.executor
        whole = np.ones(executor.n_layers, dtype=np.bool_)
        sequences = [executor.sequence(mask) for mask in (masks or [whole] * run.batch)]
        try:
            prompts = [Chunk(sequence, self.tokens(run.prompt, seed)) for seed, sequence in enumerate(sequences)]
            started = time.perf_counter()
            words = executor.best(prompts).tolist()
            read = time.perf_counter()
            for _ in range(run.new):
                steps = [Chunk(sequence, [word]) for sequence, word in zip(sequences, words, strict=True)]
                words = executor.best(steps).tolist()
            return read - started, time.perf_counter() - read
        finally:
            for sequence in sequences:
                sequence.release()

    def step_bytes(self, run: Run) -> float:
        """Bytes of weights, keys and values that a step of one request reads."""
        page = int(self.executor.pool.page_bytes[0])
        return self.executor.weight_bytes + self.executor.n_layers * page / PAGE * (run.prompt + run.new / 2)


def _decode(bench: Bench, ours: _Ours, run: Run) -> dict[str, Any]:
    ours.seconds(run)
    found: dict[str, list[float]] = {"tok/s": [], "share": []}

    def turn() -> float:
        speed = run.new * run.batch / ours.seconds(run)[1]
        found["tok/s"].append(speed)
        time.sleep(SETTLE)
        found["share"].append(speed / run.batch * ours.step_bytes(run) / read_speed(bench.threads, 3))
        return speed

    beside = _beside(bench, ours.format, run, turn, "answer")
    figures = {name: median(values) for name, values in found.items()}
    if run.batch > 1:  # more than reading once
        del figures["share"]
    return {**figures, **beside}


def _prompt(bench: Bench, ours: _Ours, run: Run) -> dict[str, Any]:
    ours.seconds(run)
    speeds: list[float] = []

    def turn() -> float:
        speeds.append(run.prompt * run.batch / ours.seconds(run)[0])
        return speeds[-1]

    beside = _beside(bench, ours.format, run, turn, "prompt")
    return {"tok/s": median(speeds), **beside}


def _beside(bench: Bench, format: str, run: Run, turn: Any, what: str) -> dict[str, float]:
    """Take turns with the peers: their medians, and those of ours over theirs. The first turn picks each one's way."""
    ways: dict[str, list[Peer]] = {}
    for peer in bench.peers:
        ways.setdefault(peer.name, []).append(peer)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        own = turn()
        for name, left in ways.items():
            measured = [(getattr(peer.speeds(bench.file(format), run), what), peer) for peer in left]
            speed, best = max(measured, key=lambda pair: pair[0])
            ways[name] = [best]
            speeds[name].append(speed)
            ratios[name].append(own / speed)
    figures = {}
    for name in ways:
        figures |= {name: median(speeds[name]), f"÷ {name}": median(ratios[name])}
    return figures


def _masks(ours: _Ours, new: int) -> dict[str, Any]:
    """Eight requests under eight masks, each without a tenth of the blocks, against eight under one of these."""
    layers = ours.executor.n_layers
    generator = np.random.default_rng(0)
    masks = []
    for _ in range(MASKS):
        mask = np.ones(layers, dtype=np.bool_)
        mask[generator.choice(np.arange(1, layers), max(1, layers // 10), replace=False)] = False
        masks.append(mask)
    run = Run(SHORT, new, MASKS)
    ours.seconds(run, masks)
    ratios = []
    for _ in range(2 * TURNS):
        several = ours.seconds(run, masks)[1]
        ratios.append(several / ours.seconds(run, [masks[0]] * MASKS)[1])
    return {
        "time ÷ one mask": median(ratios),
        "blocks that run ÷ one mask": int(np.any(masks, 0).sum()) / masks[0].sum(),
    }
