"""What the driver takes in from many workers, with a store: workers that sleep stand in for those that compute.

    python benchmarks/workers/bench_driver.py [--workers 128] [--rates 20 180 1800 0] [--masks 8000] [--layers 80]

The driver's own code cuts the masks, hands out tasks, takes numbers off `--workers` sockets, remembers and commits
them. Each rate is what one worker does, in unit evaluations a second (docs/guides/clusters.md says whose those are); a
head counts for `--head-cost` of them. 0 is as fast as they can, which shows the ceiling. `efficiency` is the time in
which N workers would do the work of one if nothing were lost, over the time seen; `of_the_cut` is what it would be with
a driver that takes no time: prefixes computed twice, and workers that wait for the last. Ends in one JSON line.
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
from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.game.store import Store, mask_key
from layercoop_fast.masked.plan import count_evaluations
from layercoop_fast.masked.scores import Scores
from layercoop_fast.workers.cut import cut_masks, sharing
from layercoop_fast.workers.dispatch import Workers
from layercoop_fast.workers.local import LocalProcesses

SLEEPER = str(Path(__file__).with_name("sleeping_worker.py"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=128)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[20.0, 180.0, 1800.0, 0.0], help="unit evaluations a second"
    )
    parser.add_argument("--masks", type=int, default=8000, help="at least; more where the run would be short")
    parser.add_argument("--head-cost", type=float, default=1.2)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--windows", type=int, default=10)
    arguments = parser.parse_args()
    runs = []
    transport = Sleepers(arguments.workers, program=[SLEEPER])
    for rate in arguments.rates:
        # Long enough that the start of a run does not decide: ten seconds of all workers.
        count = max(arguments.masks, int(10 * rate * arguments.workers / 40)) if rate else 16 * arguments.masks
        masks = np.unique(stratified_masks(arguments.layers, count), axis=0)
        runs.append({"evaluations_a_second_each": rate, **driven(masks, transport, rate, arguments)})
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
        """Start one, if it is not there."""
        if place not in self._processes:
            super().start(place)

    def close(self) -> None:
        """They stay."""

    def end(self) -> None:
        """Now they go."""
        super().close()


def driven(
    masks: np.ndarray, transport: Sleepers, rate: float, arguments: argparse.Namespace
) -> dict[str, float | int | None]:
    """Take in the numbers of all masks (bool [M, n], distinct), and say how long that took."""
    n_workers, head_cost, n_windows = transport.n_workers, arguments.head_cost, arguments.windows
    began = time.perf_counter()
    tasks = cut_masks(masks, n_workers, head_cost=head_cost)
    cutting = time.perf_counter() - began
    keys = [mask_key(mask) for mask in masks]
    workers = Workers(transport, {})
    workers.open({"rate": rate, "head_cost": head_cost, "windows": n_windows})
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store", write=True) as store:
        shelf = KnownScores(store, store.claim({"game": "asleep"}, masks.shape[1], [127] * n_windows))
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
    alone = (count_evaluations(masks).plan + head_cost * len(masks)) / n_workers
    cut = sharing(masks, [n_workers], head_cost=head_cost)[0]
    costs = sum(task.cost for task in tasks)
    return {
        "masks": len(masks),
        "tasks": len(tasks),
        "cutting_seconds": round(cutting, 3),
        "seconds": round(seconds, 3),
        "rows_a_second": round(len(masks) / seconds, 1),
        "driver_busy": round(busy / seconds, 4),
        "efficiency": round(alone / rate / seconds, 4) if rate else None,
        "of_the_cut": round(cut.busy * alone * n_workers / costs, 4),
    }


def processor_seconds() -> float:
    """Of this process, system calls included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
