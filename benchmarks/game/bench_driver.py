"""What the driver takes in from many workers, with a store: workers that sleep stand in for those that compute.

    python benchmarks/game/bench_driver.py [--workers 128] [--rates 0.5 4 40 0] [--masks 8000] [--layers 80]

The driver's own code cuts the masks, hands out tasks, takes numbers off `--workers` sockets, puts them on the shelf and
commits them. Each rate is what one worker measures, in masks a second (`docs/clusters.md` says which models those are);
0 is as fast as they can, which shows the ceiling. `lost` is 1 − time of the workers alone ÷ time seen: the time that
they would need if the driver took none and all ended together. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

from layercoop_fast import stratified_masks
from layercoop_fast.game.shelf import Shelf
from layercoop_fast.game.store import Scores, Store, mask_key
from layercoop_fast.workers.cut import cut_masks
from layercoop_fast.workers.dispatch import Workers
from layercoop_fast.workers.local import LocalProcesses

SLEEPER = str(Path(__file__).with_name("sleeping_worker.py"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=128)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 4.0, 40.0, 0.0], help="masks a second, each")
    parser.add_argument("--masks", type=int, default=8000, help="of a worker's rate of 4 or less; more where faster")
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--windows", type=int, default=10)
    arguments = parser.parse_args()
    runs = []
    transport = Sleepers(arguments.workers, program=[SLEEPER])
    for rate in arguments.rates:
        # Long enough that the start of a run does not decide: ten seconds of all workers.
        count = max(arguments.masks, int(10 * rate * arguments.workers)) if rate else 16 * arguments.masks
        masks = np.unique(stratified_masks(arguments.layers, count), axis=0)
        runs.append({"masks_a_second_each": rate, **driven(masks, transport, rate, arguments.windows)})
    transport.end()
    result = {
        "benchmark": "game/driver",
        "machine": machine(),
        "workers": arguments.workers,
        "layers": arguments.layers,
        "windows": arguments.windows,
        "runs": runs,
    }
    sys.stdout.write(json.dumps(result) + "\n")


class Sleepers(LocalProcesses):
    """Processes that stay for the next run: a hundred take a while to start."""

    def start(self, place: int) -> None:
        if place not in self._processes:
            super().start(place)

    def close(self) -> None:
        """They stay."""

    def end(self) -> None:
        """Now they go."""
        super().close()


def driven(masks: np.ndarray, transport: Sleepers, rate: float, n_windows: int) -> dict[str, float | int | None]:
    """Take in the numbers of all masks (bool [M, n], distinct), and say how long that took."""
    began = time.perf_counter()
    n_workers = transport.n_workers
    tasks = cut_masks(masks, n_workers, head_cost=2.0)
    cutting = time.perf_counter() - began
    keys = [mask_key(mask) for mask in masks]
    workers = Workers(transport, {})
    workers.open({"rate": rate, "windows": n_windows})
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store", write=True) as store:
        shelf = Shelf(store, store.claim({"game": "asleep"}, masks.shape[1], [127] * n_windows))
        began, busy = time.perf_counter(), processor_seconds()
        with closing(workers.map(masks, tasks)) as stream:
            for results in stream:
                for row, nll, kl in zip(results.rows.tolist(), results.nll, results.kl, strict=True):
                    shelf.add(keys[row], Scores(nll, kl))
                shelf.commit_when_due()
        shelf.commit()
        seconds, busy = time.perf_counter() - began, processor_seconds() - busy
        (held,) = store.games()
    if held.masks != len(masks):
        raise SystemExit(f"{len(masks) - held.masks} of {len(masks)} masks were lost")
    alone = len(masks) / (rate * n_workers) if rate else None
    return {
        "masks": len(masks),
        "tasks": len(tasks),
        "cutting_seconds": round(cutting, 3),
        "seconds": round(seconds, 3),
        "rows_a_second": round(len(masks) / seconds, 1),
        "driver_busy": round(busy / seconds, 4),
        "lost": None if alone is None else round(1 - alone / seconds, 4),
    }


def processor_seconds() -> float:
    """Of this process, system calls included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
