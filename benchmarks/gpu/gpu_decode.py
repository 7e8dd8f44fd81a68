"""Tokens a second of greedy decoding: ours (also in int8 and int4), transformers' generate, its compiled static cache.

The limit on paper is the chip's bandwidth over the bytes that a token reads: the weights, and the keys and values of
half the new tokens behind the prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from chips import Peak, wall
from transformers import LlamaForCausalLM

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.gpu import GpuExecutor

_PROMPT = 32


def bench(model: LlamaForCausalLM, new: int, peak: Peak | None) -> dict[str, Any]:
    """Each way's tokens a second, for one request; ours also for eight, of as many masks."""
    device = model.device
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, model.config.vocab_size, (1, _PROMPT), generator=generator).to(device)
    found: dict[str, Any] = {"prompt": _PROMPT, "new": new, "tokens_a_second": {}}

    def record(way: str, work: Callable[[], object], tokens: int) -> None:
        try:
            work()
            found["tokens_a_second"][way] = tokens / min(wall(work) for _ in range(3))
        except Exception as problem:  # one way less is no reason to lose the others' figures
            found["tokens_a_second"][way] = f"failed: {type(problem).__name__}: {problem}"[:300]

    def generate(**options: Any) -> Callable[[], object]:
        settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0, **options}
        return lambda: model.generate(prompt, **settings)

    record("transformers", generate(), new)
    # On a GPU transformers compiles the forward of one token behind such a cache by itself, with graphs.
    record("transformers, static cache, torch.compile", generate(cache_implementation="static"), new)
    skeleton = Skeleton(model)
    room = 9 * model.config.num_hidden_layers * (_PROMPT + new + 16)
    one = 2 * model.config.num_key_value_heads * model.config.head_dim * model.dtype.itemsize
    executor = GpuExecutor(skeleton, room * one * 2)
    layers = skeleton.n_layers
    masks = np.ones((8, layers), dtype=np.bool_)
    masks[np.arange(8), np.arange(8) % layers] = layers == 1
    record("ours", lambda: _ours(executor, prompt, np.ones((1, layers), dtype=np.bool_), new), new)
    record("ours, eight masks", lambda: _ours(executor, prompt, masks, new), 8 * new)
    embedding = model.get_input_embeddings().weight
    read = {"ours": executor.weight_bytes - embedding.numel() * embedding.element_size()}
    for dtype in ("int8", "int4"):
        way = f"ours, {dtype}"
        try:
            # Packed on the CPU, from a copy that is used up.
            packed = GpuExecutor(Skeleton(copy.deepcopy(model).to("cpu")), room * one * 2, dtype=dtype, device=device)
        except Exception as problem:  # one way less is no reason to lose the others' figures
            found["tokens_a_second"][way] = f"failed: {type(problem).__name__}: {problem}"[:300]
            continue
        record(way, lambda p=packed: _ours(p, prompt, np.ones((1, layers), dtype=np.bool_), new), new)
        read[way] = packed.weight_bytes - embedding.numel() * 34 // 32  # int8 with a scale for 32: a row of it is read
        del packed
    if peak is not None:
        for way, weights in read.items():
            limit = peak.bandwidth / (weights + layers * one * (_PROMPT + new // 2))
            found.setdefault("limit", {})[way] = limit
            if isinstance(speed := found["tokens_a_second"][way], float):
                found.setdefault("share_of_limit", {})[way] = speed / limit
    return found


def _ours(executor: GpuExecutor, prompt: torch.Tensor, masks: np.ndarray, new: int) -> None:
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
