"""Workers as actors of a Ray cluster: one a GPU, or on the CPU one a share of a node (extra `[ray]`).

On the CPU a share is all processors that Ray counts on the smallest node, so that every worker has the same number of
threads and their worths the same bits; a node twice as large gets two, if it has the memory for them. Every node must
hold the checkpoint under the same path, and this package. The weights are not sent: each worker opens the files where
it is, and workers of one node read them through one page cache.

An actor computes in a thread of its own and answers two calls: `send` takes a message for it, `take` waits for those
from it. The driver has one `take` under way for each actor, which also tells when the actor is gone.
"""

from __future__ import annotations

import os
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.workers.ray_cluster import join_cluster

# How long an actor waits for something to answer `take` with.
_TAKE_SECONDS = 5.0


class Host:
    """What an actor is made of: a thread that serves the driver, and the two queues between."""

    def __init__(self) -> None:
        import queue
        import threading

        import ray

        from layercoop_fast.workers.worker import serve  # in the actor's process only: it loads torch

        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        node = ray.get_runtime_context().get_node_id()
        threading.Thread(
            target=serve, args=(self.inbox.get, self.outbox.put), kwargs={"machine": node}, daemon=True
        ).start()

    def send(self, message: bytes) -> None:
        """Hand the worker a message."""
        self.inbox.put(message)

    def process_id(self) -> int:
        """The process of the actor."""
        return os.getpid()

    def take(self, seconds: float) -> list[bytes]:
        """The messages of the worker, waiting so long for the first."""
        import queue

        taken: list[bytes] = []
        try:
            taken.append(self.outbox.get(timeout=seconds))
            while True:
                taken.append(self.outbox.get_nowait())
        except queue.Empty:
            return taken


class RayActors:
    """Actors of a cluster; a `Transport`.

    Args:
        address: of the cluster; None for the one that this process or machine belongs to.
        device: "cpu", or "cuda" for a GPU each.
        worker_bytes: about how much memory an actor takes; 0: as little as not to matter.

    Raises `RequestError` where ray is not installed, no cluster answers, or none of its processors or GPUs is free.
    """

    def __init__(self, address: str | None, *, device: str = "cpu", worker_bytes: int = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise RequestError("workers=ray needs the extra: pip install 'layercoop-fast[ray]'") from error
        self._ray = ray
        self._address = address
        self._joined_here = not ray.is_initialized()
        self._join()
        try:
            self._options, self.threads, self.shares = _lay_out(
                ray.nodes(), gpus=device == "cuda", worker_bytes=worker_bytes
            )
            free = ray.available_resources()
        except BaseException:
            self._leave()
            raise
        resource, each = ("GPU", 1) if device == "cuda" else ("CPU", self.threads)
        self.n_workers = min(sum(self.shares.values()), int(free.get(resource, 0) // each))
        if self.n_workers < 1:
            self._leave()
            raise RequestError(
                f"no {resource} of the Ray cluster is free: add nodes, or wait until others are done"
                if sum(self.shares.values())
                else f"the Ray cluster has no {resource} at all: start its nodes with --num-{resource.lower()}s"
            )
        self._actors: dict[int, Any] = {}
        self._takes: dict[Any, int] = {}
        self._ends: dict[int, str] = {}

    def start(self, place: int) -> None:
        """Ask the cluster for an actor."""
        self._join()
        made = self._ray.remote(Host).options(**self._options)
        self._actors[place] = made.remote()

    def send(self, place: int, message: bytes) -> None:
        """Send a message, unless the actor is known to be gone."""
        if place in self._actors:
            self._actors[place].send.remote(message)

    def receive(self, seconds: float) -> list[tuple[int, bytes | None]]:
        """The messages of every actor that has some."""
        waited_for = set(self._takes.values())
        for place, actor in self._actors.items():
            if place not in waited_for:
                self._takes[actor.take.remote(_TAKE_SECONDS)] = place
        ready, _ = self._ray.wait(list(self._takes), num_returns=1, timeout=seconds)
        if ready:  # and whatever else is there by now
            ready, _ = self._ray.wait(list(self._takes), num_returns=len(self._takes), timeout=0)
        received: list[tuple[int, bytes | None]] = []
        for take in ready:
            place = self._takes.pop(take)
            try:
                received.extend((place, message) for message in self._ray.get(take))
            except self._ray.exceptions.RayError as error:
                self._ends[place] = reason(error)[:300]
                del self._actors[place]
                received.append((place, None))
        return received

    def why_lost(self, place: int) -> str:
        """What Ray says."""
        return self._ends.get(place, "its actor is gone")

    def close(self) -> None:
        """End all actors; leave the cluster if it was joined here."""
        actors = list(self._actors.values())
        self._actors.clear()
        self._takes.clear()
        if not self._ray.is_initialized():
            return  # somebody else has left the cluster, and the actors ended with that
        for actor in actors:
            self._ray.kill(actor, no_restart=True)
        self._leave()

    def _join(self) -> None:
        if not self._ray.is_initialized():
            join_cluster(
                self._ray, self._address, written="ray:HOST:PORT", otherwise=", or give a number of local workers"
            )

    def _leave(self) -> None:
        if self._joined_here:
            self._ray.shutdown()


def _lay_out(
    nodes: list[dict[str, Any]], *, gpus: bool, worker_bytes: int
) -> tuple[dict[str, Any], int, dict[str, int]]:
    """Options of an actor, threads of each, and how many go on each node (by its id): one at least where it has any."""
    alive = {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}
    processors = {node: int(has.get("CPU", 0)) for node, has in alive.items()}
    if gpus:
        counts = {node: int(has["GPU"]) for node, has in alive.items() if has.get("GPU", 0) >= 1}
        threads = max(1, min((processors[node] // count for node, count in counts.items()), default=1))
        return {"num_gpus": 1, "num_cpus": 1, "max_concurrency": 2}, threads, counts
    threads = min((count for count in processors.values() if count), default=1)
    counts = {node: count // threads for node, count in processors.items() if count}
    for node, count in counts.items():
        if worker_bytes and "memory" in alive[node]:
            counts[node] = min(count, max(1, int(alive[node]["memory"] // worker_bytes)))
    return {"num_cpus": threads, "max_concurrency": 2}, threads, counts
