"""Whether the GPU computes what the CPU does: each kernel, graphs, and the worths of some masks of a small llama."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from chips import Bench
from gpu_engine import game_of, random_ids
from gpu_models import random_llama
from parts import Rows

from layercoop_fast.kernels.checks import ESTIMATING, OPERATIONS, check
from layercoop_fast.masked.queues import CudaQueue, queue_of


def rows(bench: Bench) -> Rows:
    """The kernels one by one, then what is made of them."""
    for dtype in (torch.float32,) if bench.tiny else (torch.bfloat16, torch.float16, torch.float32):
        for operation in OPERATIONS:
            if operation not in ESTIMATING or dtype == torch.float32:
                yield f"{operation}, {_short(dtype)}", partial(_kernel, operation, bench, dtype)
    yield "graphs", partial(_graphs, bench)
    for dtype in (torch.float32, bench.dtype):
        yield f"worths of 40 masks, {_short(dtype)}", partial(_worths, bench, dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kernel(operation: str, bench: Bench, dtype: torch.dtype) -> dict[str, Any]:
    found = check(operation, bench.device, dtype)
    if found.problem is not None:
        raise AssertionError(found.problem)
    return {"difference": found.difference, "allowed": found.allowed}


def _graphs(bench: Bench) -> dict[str, Any]:
    queue = queue_of(bench.device)
    if not isinstance(queue, CudaQueue):
        return {"difference": "no graphs without a GPU"}
    if (problem := queue.graphs.check()) is not None:
        raise AssertionError(problem)
    return {"difference": 0.0, "allowed": 0.0}


def _worths(bench: Bench, dtype: torch.dtype) -> dict[str, Any]:
    """Four times on the GPU, so that graphs are replayed, against the model's own modules on the CPU in fp32."""
    model = random_llama("tiny" if bench.tiny else "smoke", bench.device, dtype)
    ids = random_ids(model, 2, 6 if bench.tiny else 64)
    n_layers = model.config.num_hidden_layers
    masks = np.random.default_rng(0).random((6 if bench.tiny else 40, n_layers)) < 0.7
    game = game_of(model, ids)
    for _ in range(4):
        found = game.view(apart=True, stored=False).evaluate(masks).nll
    reference = game_of(model.to("cpu", torch.float32), ids.cpu(), "hf")
    difference = float(np.abs(found / reference.evaluate(masks).nll - 1).max())
    allowed = 1e-4 if dtype == torch.float32 else 0.02
    if not difference <= allowed:
        raise AssertionError(f"worths differ from the CPU's by {difference:.1e} of them")
    return {"difference": difference, "allowed": allowed, "blocks": game.masked.units.path}
