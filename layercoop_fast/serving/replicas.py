"""How many replicas of the server there are on a Ray cluster, and what each of them takes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import MACHINE, option


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where replicas run, and how many.

    Attributes:
        ray: "auto" for the cluster that this machine is in, "HOST:PORT" for another; None: no replicas, one server.
        replicas: how many; None: one for each node, or for each GPU where the model runs on GPUs.

    Raises `RequestError` for replicas without a cluster, and for an address of Ray's client.
    """

    ray: str | None = option(
        None,
        MACHINE,
        "Serve by replicas on a Ray cluster: auto for the one that this machine is in, or the address of another.",
        metavar="auto|HOST:PORT",
    )
    replicas: int | None = option(
        None, MACHINE, "Replicas on the Ray cluster. Default: one for each node, or for each GPU.", least=1
    )

    def __post_init__(self) -> None:
        if self.replicas is not None and self.ray is None:
            raise RequestError(f"replicas={self.replicas} belongs to ray=: say which Ray cluster, for example ray=auto")
        if self.ray is not None and "://" in self.ray:
            raise RequestError(f"ray={self.ray}: write auto, or HOST:PORT of the head node as `ray start` says it")
        if self.replicas is not None and self.replicas < 1:
            raise RequestError(f"replicas= must be 1 or more, not {self.replicas}")


@dataclass(frozen=True)
class Replica:
    """One of several servers that answer at one address.

    Attributes:
        name: tells it from the others, in metrics.
        count: how many there are.
    """

    name: str
    count: int


@dataclass(frozen=True)
class Share:
    """What each replica takes of a cluster.

    Attributes:
        replicas: how many there are.
        threads: processors of each, and threads that it computes with.
        gpus: GPUs of each, 0 or 1.
    """

    replicas: int
    threads: int
    gpus: int


def share_out(nodes: Sequence[dict[str, Any]], replicas: int | None, *, gpus: bool) -> Share:
    """Divide a cluster among replicas, all alike.

    On the CPU each gets as many threads as leave room for all of them; on GPUs a GPU, and the processors that its node
    has for each GPU.

    Args:
        nodes: of the cluster, as `ray.nodes()` gives them.
        replicas: how many; None: one for each node that has processors, or for each GPU.
        gpus: whether each takes a GPU.

    Raises `RequestError` where the cluster does not have room for so many.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if gpus:
        alive = [has for has in alive if has.get("GPU", 0) >= 1]
    processors = [int(has.get("CPU", 0)) for has in alive]
    name, room = ("GPUs", sum(int(has["GPU"]) for has in alive)) if gpus else ("processors", sum(processors))
    wanted = replicas or (room if gpus else sum(count > 0 for count in processors))
    if not 0 < wanted <= room:
        raise RequestError(
            f"replicas={wanted}: the Ray cluster has {room} {name}, and each replica takes one at least"
            if wanted
            else f"the Ray cluster has no {name} for replicas: add nodes that have some"
        )
    if gpus:
        return Share(wanted, max(1, min(int(has.get("CPU", 0) // int(has["GPU"])) for has in alive)), 1)
    threads = next(
        count for count in range(max(processors), 0, -1) if sum(mine // count for mine in processors) >= wanted
    )
    return Share(wanted, threads, 0)
