"""Values and mean marginals of a surrogate's network: the kernels against torch, in one run.

    python benchmarks/surrogate/bench_kernels.py

32 players, 64 hidden units, CELU, sigmoid. Marginals are over 80,000 masks, four ways: published (two calls of one mask
for each mask and player; 1% of the masks, scaled), batched torch (all neighbours as rows of one matrix), incremental
torch (one column added a player), and the kernel. Values are of 1,000,000 masks given as booleans; the share of the
peak counts n·H + H multiply-adds a mask (the kernel does fewer: it adds sums of four columns) against those of a
float32 matrix product of torch in the same run.

Ratios are of processor time on one thread each, torch at its best block size: they hold on a busy machine too. Wall
the time with all threads is given too. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from layercoop_fast import _C
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.surrogate import marginals, predict_logits
from layercoop_fast.masks.stratified import stratified_masks

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

N_PLAYERS, N_HIDDEN, N_MASKS, N_PREDICTED = 32, 64, 80_000, 1_000_000


def best_seconds(function: Callable[[], object], runs: int, clock: Callable[[], float] = time.process_time) -> float:
    seconds = []
    for _ in range(runs):
        start = clock()
        function()
        seconds.append(clock() - start)
    return min(seconds)


class _Torch:
    """The same network in torch, float32."""

    def __init__(self, networks: Networks) -> None:
        self.w, self.b, self.v, self.c = (
            torch.tensor(a[0])
            for a in (networks.hidden_weight, networks.hidden_bias, networks.output_weight, networks.output_bias)
        )

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The values before the sigmoid."""
        return F.celu(F.linear(x, self.w, self.b)) @ self.v + self.c

    def predict(self, masks: torch.Tensor, block: int) -> torch.Tensor:
        """`logits`, a block at a time."""
        return torch.cat([self.logits(x.float()) for x in masks.split(block)])

    def published_marginals(self, masks: torch.Tensor) -> torch.Tensor:
        """Two calls of one mask each."""
        total = torch.zeros(N_PLAYERS)
        for mask in masks:
            for i in range(N_PLAYERS):
                with_player, without = mask.float(), mask.float()
                with_player[i], without[i] = 1, 0
                total[i] += torch.sigmoid(self.logits(with_player)) - torch.sigmoid(self.logits(without))
        return total / len(masks)

    def batched_marginals(self, masks: torch.Tensor, block: int) -> torch.Tensor:
        """Masks and all their neighbours as rows."""
        flips = torch.eye(N_PLAYERS, dtype=torch.bool)
        total = torch.zeros(N_PLAYERS, dtype=torch.float64)
        for x in masks.split(block):
            rows = torch.cat([x[:, None], x[:, None] ^ flips], dim=1).reshape(-1, N_PLAYERS).float()
            worths = torch.sigmoid(self.logits(rows)).reshape(len(x), N_PLAYERS + 1)
            gain = worths[:, 1:] - worths[:, :1]
            total += torch.where(x, -gain, gain).double().sum(0)
        return total / len(masks)

    def incremental_marginals(self, masks: torch.Tensor, block: int) -> torch.Tensor:
        """One column added a player."""
        columns = self.w.T.contiguous()
        total = torch.zeros(N_PLAYERS, dtype=torch.float64)
        for x in masks.split(block):
            base = F.linear(x.float(), self.w, self.b)
            worth = torch.sigmoid(F.celu(base) @ self.v + self.c)
            moved = torch.empty_like(base)
            for i in range(N_PLAYERS):
                sign = 1 - 2 * x[:, i : i + 1].float()
                torch.addcmul(base, sign, columns[i], out=moved)
                gain = torch.sigmoid(F.celu(moved, inplace=True) @ self.v + self.c) - worth
                total[i] += (sign[:, 0] * gain).double().sum()
        return total / len(masks)


def main() -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, N_HIDDEN, N_PLAYERS), (1, N_HIDDEN), (1, N_HIDDEN), (1,)]
    networks = Networks(*(rng.normal(scale=0.3, size=shape).astype(np.float32) for shape in shapes))
    plain, threads = _Torch(networks), _C.num_threads()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    masks = stratified_masks(N_PLAYERS, N_MASKS)
    tensor = torch.from_numpy(masks)
    sample = tensor[torch.randperm(N_MASKS)[: N_MASKS // 100]]
    _C.set_num_threads(1)
    seconds = {
        "published, 1% scaled": 100 * best_seconds(lambda: plain.published_marginals(sample), 1),
        "batched torch": min(best_seconds(lambda b=b: plain.batched_marginals(tensor, b), 2) for b in (16, 32, 128)),
        "incremental torch": min(
            best_seconds(lambda b=b: plain.incremental_marginals(tensor, b), 2) for b in (256, 512, 2048)
        ),
        "kernel": best_seconds(lambda: marginals(networks, masks), 20),
    }
    _C.set_num_threads(threads)
    wall = best_seconds(lambda: marginals(networks, masks), 50, time.perf_counter)
    error = np.abs(plain.batched_marginals(tensor, 128).numpy() - marginals(networks, masks)[0]).max()
    for name, value in seconds.items():
        print(f"marginals, {name:<22} {value:9.4f} s  {value / seconds['kernel']:9.1f}x")

    many = rng.random((N_PREDICTED, N_PLAYERS)) < 0.7
    packed, tensor = _C.pack_masks(many), torch.from_numpy(many)
    _C.set_num_threads(1)
    predicted = {
        "batched torch": min(best_seconds(lambda b=b: plain.predict(tensor, b), 2) for b in (512, 1024, 4096)),
        "kernel, packing included": best_seconds(lambda: predict_logits(networks, many), 5),
        "kernel": best_seconds(lambda: _C.predict_logits(networks, packed), 5),
    }
    _C.set_num_threads(threads)
    predicted_wall = best_seconds(lambda: _C.predict_logits(networks, packed), 10, time.perf_counter)
    for name, value in predicted.items():
        print(f"values, {name:<25} {N_PREDICTED / value / 1e6:9.2f} M/s  {predicted['batched torch'] / value:6.1f}x")
    a = torch.rand(1024, 1024)
    peak = 1024**3 / best_seconds(lambda: a @ a, 10)

    ns_a_flip = seconds["kernel"] / (N_MASKS * N_PLAYERS) * 1e9
    over = {name: value / seconds["kernel"] for name, value in seconds.items() if name != "kernel"}
    prediction_over = predicted["batched torch"] / predicted["kernel"]
    result = {
        "benchmark": "surrogate_kernels",
        "machine": machine(),
        "isa": _C.isa(),
        "marginals_seconds_one_thread": seconds,
        "marginals_wall_all_threads": wall,
        "marginals_over": over,
        "marginals_error_against_torch": float(error),
        "ns_a_flip_a_core": ns_a_flip,
        "masks_a_second_one_thread": {name: N_PREDICTED / value for name, value in predicted.items()},
        "masks_a_second_wall_all_threads": N_PREDICTED / predicted_wall,
        "prediction_over_torch": prediction_over,
        "share_of_fma_peak": N_PREDICTED * N_HIDDEN * (N_PLAYERS + 1) / predicted["kernel"] / peak,
        "fma_peak_one_thread": peak,
        "threads": threads,
        "asked": {
            "over batched torch": [60, over["batched torch"] >= 60],
            "over incremental torch": [10, over["incremental torch"] >= 10],
            "ns a flip a core": [8, ns_a_flip <= 8],
            "prediction over torch": [20, prediction_over >= 20],
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
