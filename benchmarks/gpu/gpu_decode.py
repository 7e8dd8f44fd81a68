"""Tokens a second of greedy decoding: ours (also in int8 and int4), transformers' generate, its compiled static cache.

The limit on paper is the chip's bandwidth over the bytes that a token reads: the weights, and the keys and values of
half the new tokens behind the prompt. Formats of 8 and 4 bits are measured on a quarter of the blocks, since packing
takes minutes; their limit is that of these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from chips import Bench, wall
from gpu_models import SIZES, random_llama
from parts import Rows
from transformers import LlamaForCausalLM

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.runtime import gpu
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.gpu import GpuExecutor

PROMPT, NEW = 32, 256
LONG = 4096  # tokens of a prompt that several answers share


def rows(bench: Bench) -> Rows:
    """Ours, packed, and transformers', of an 8B llama."""
    size = "tiny" if bench.tiny else "8b"
    yield from of_size(bench, size)
    yield f"{size}, transformers", partial(_transformers, bench, size)
    # On a GPU transformers compiles the forward of one token behind such a cache by itself, with graphs.
    yield (
        f"{size}, transformers, static cache, torch.compile",
        partial(_transformers, bench, size, cache_implementation="static"),
    )


def of_size(bench: Bench, size: str) -> Rows:
    """Ours of a size, for one request, for eight of as many masks, for eight answers to one prompt, and packed."""
    yield f"{size}, ours", partial(_ours, bench, size, 1)
    yield f"{size}, ours, eight masks", partial(_ours, bench, size, 8)
    yield f"{size}, ours, eight answers to one long prompt", partial(_answers, bench, size)
    for dtype in ("int4", "int8"):
        blocks = max(1, SIZES[size]["num_hidden_layers"] // 4)
        yield f"{size}, {blocks} blocks, ours, {dtype}", partial(_packed, bench, size, blocks, dtype)


@cache
def _model(bench: Bench, size: str) -> LlamaForCausalLM:
    return random_llama(size, bench.device, bench.dtype)


@cache
def _executor(bench: Bench, size: str) -> GpuExecutor:
    model = _model(bench, size)
    return GpuExecutor(Skeleton(model), _budget(model))


def _new(bench: Bench) -> int:
    return 3 if bench.tiny else NEW


def _bytes_of_token(model: LlamaForCausalLM) -> int:
    """Of the keys and values of one token in one block."""
    return int(2 * model.config.num_key_value_heads * model.config.head_dim * model.dtype.itemsize)


def _budget(model: LlamaForCausalLM) -> int:
    return 18 * model.config.num_hidden_layers * (PROMPT + NEW + 16) * _bytes_of_token(model)


def _prompt(bench: Bench, model: LlamaForCausalLM) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.vocab_size, (1, PROMPT), generator=generator).to(bench.device)


def _speed(work: Callable[[], object], tokens: int) -> float:
    work()
    return tokens / min(wall(work) for _ in range(3))


def _figures(bench: Bench, model: LlamaForCausalLM, speed: float, read: int | None) -> dict[str, Any]:
    """The speed, and its share of what the chip's bandwidth allows where a token reads so many bytes of weights."""
    found: dict[str, Any] = {"tokens a second": speed}
    if bench.peak is not None and read is not None:
        context = model.config.num_hidden_layers * _bytes_of_token(model) * (PROMPT + NEW // 2)
        found["limit on paper"] = bench.peak.bandwidth / (read + context)
        found["share"] = speed / found["limit on paper"]
    return found


def _ours(bench: Bench, size: str, requests: int) -> dict[str, Any]:
    model, executor, layers = _model(bench, size), _executor(bench, size), SIZES[size]["num_hidden_layers"]
    masks = np.ones((requests, layers), dtype=np.bool_)
    if requests > 1:
        masks[np.arange(requests), np.arange(requests) % layers] = layers == 1
    new = _new(bench)
    speed = _speed(lambda: _generate(executor, _prompt(bench, model), masks, new), requests * new)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    # A row of the embedding is read, unless it is the head too.
    unread = 0 if embedding.data_ptr() == head.data_ptr() else embedding.numel() * embedding.element_size()
    return _figures(bench, model, speed, executor.weight_bytes - unread if requests == 1 else None)


def _answers(bench: Bench, size: str) -> dict[str, Any]:
    """Eight answers to one prompt, which attention reads once for all of them, and eight times."""
    before = gpu.LEAST_SAVED
    try:
        once, by_each = _answering(bench, size, 0), _answering(bench, size, sys.maxsize)
    finally:
        gpu.LEAST_SAVED = before
    return {"tokens a second": once, "read by each": by_each, "times": once / by_each}


def _answering(bench: Bench, size: str, least_saved: int) -> float:
    """Tokens a second of eight answers, where teams are made that save so many bytes."""
    gpu.LEAST_SAVED = least_saved
    executor = _executor(bench, size)
    prompt, new = list(range(3, 3 + (40 if bench.tiny else LONG))), 3 if bench.tiny else 32
    sequences = [executor.sequence() for _ in range(8)]
    executor.best([Chunk(sequence, prompt) for sequence in sequences])

    def answer() -> None:
        for step in range(new):
            executor.best([Chunk(sequence, [3 + step + at]) for at, sequence in enumerate(sequences)])
        for sequence in sequences:
            sequence.truncate(len(prompt))

    try:
        return _speed(answer, 8 * new)
    finally:
        for sequence in sequences:
            sequence.release()


def _packed(bench: Bench, size: str, blocks: int, dtype: str) -> dict[str, Any]:
    model = random_llama(size, torch.device("cpu"), bench.dtype, blocks)  # packed on the CPU, and used up
    embedding, budget = model.get_input_embeddings().weight, _budget(model)
    tied = embedding.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    unread = 0 if tied else embedding.numel() * 34 // 32  # int8 with a scale for 32
    prompt, new = _prompt(bench, model), _new(bench)
    executor = GpuExecutor(Skeleton(model), budget, dtype=dtype, device=bench.device)
    masks = np.ones((1, blocks), dtype=np.bool_)
    speed = _speed(lambda: _generate(executor, prompt, masks, new), new)
    return _figures(bench, model, speed, executor.weight_bytes - unread)


def _transformers(bench: Bench, size: str, **options: Any) -> dict[str, Any]:
    model, new = _model(bench, size), _new(bench)
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0, **options}
    return _figures(bench, model, _speed(lambda: model.generate(_prompt(bench, model), **settings), new), None)


def _generate(executor: GpuExecutor, prompt: torch.Tensor, masks: np.ndarray, new: int) -> None:
    sequences = [executor.sequence(mask) for mask in masks]
    try:
        words = executor.best([Chunk(sequence, prompt[0].tolist()) for sequence in sequences])
        for _ in range(new - 1):
            pairs = zip(sequences, words.tolist(), strict=True)
            words = executor.best([Chunk(sequence, [word]) for sequence, word in pairs])
        words.tolist()
    finally:
        for sequence in sequences:
            sequence.release()
