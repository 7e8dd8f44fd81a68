"""One replica of the server, in a process of a Ray cluster: how it is made, and how it is heard of and ends.

Ray Serve's actors are detached: they would outlive the command that started them. So each replica watches an actor that
ends with the command, and takes Ray Serve down when that is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from layercoop_fast.errors import LayercoopError, RequestError, RunError
from layercoop_fast.files import reason
from layercoop_fast.serving.options import ServerOptions
from layercoop_fast.serving.replicas import Replica, Share
from layercoop_fast.serving.traces import trace_variables

if TYPE_CHECKING:
    from fastapi import FastAPI

    from layercoop_fast.serving.app import Served
    from layercoop_fast.serving.engine import Engine

NAMESPACE = "layercoop"
"""Where the `Keeper` has its name."""
END_SECONDS = 10.0
"""What a replica may take to end, after the seconds that requests have; then Ray kills it."""
# Requests that a replica takes besides those that are computed or wait: short ones, for /health or the board.
_SHORT = 64
_HEALTH_SECONDS = 3.0


@dataclass(frozen=True)
class Recipe:
    """How a replica is made, on whatever node it is.

    Attributes:
        make: opens the model and says what is served; called in the replica.
        paths: files and folders that it reads: they have to be on every node.
        options: of each replica's server.
        device: of the model, "cpu" or "cuda".
    """

    make: Callable[[], Served]
    paths: Sequence[str]
    options: ServerOptions
    device: str

    def build(self, replica: Replica, threads: int) -> FastAPI:
        """The application of one replica, which computes with so many threads."""
        for path in self.paths:
            if not os.path.exists(path):
                raise RequestError(f"{path} is not there: it has to be under the same path on every node")

        import torch

        from layercoop_fast import _C
        from layercoop_fast.serving.app import make_app
        from layercoop_fast.serving.run import log_lines

        torch.set_num_threads(threads)
        _C.set_num_threads(threads)
        log_lines()
        return make_app(replace(self.make(), replica=replica))


class Keeper:
    """An actor that ends with the command; through it the command and its replicas tell each other what they need."""

    def __init__(self) -> None:
        self._replicas: list[Any] = []
        self._failures: list[tuple[str, int]] = []
        self._draining = asyncio.Event()
        self._cut_off = 0

    async def wait(self) -> None:
        """Never return: the caller hears of the command's end by an error."""
        await asyncio.Event().wait()

    async def joined(self, replica: Any) -> None:
        """The actor of a replica that starts."""
        self._replicas.append(replica)

    async def replicas(self) -> list[Any]:
        """The actors of all replicas that started."""
        return self._replicas

    async def failed(self, line: str, status: int) -> None:
        """A replica does not start, and why."""
        self._failures.append((line, status))

    async def failures(self) -> list[tuple[str, int]]:
        """Why replicas did not start, with an exit status each."""
        return self._failures

    async def drain(self) -> None:
        """From now on what is under way has the seconds of `ServerOptions.drain`."""
        self._draining.set()

    async def draining(self) -> None:
        """Return once that begins."""
        await self._draining.wait()

    async def cut(self, requests: int) -> None:
        """A replica ends so many requests that were not answered in these seconds."""
        self._cut_off += requests

    async def cut_off(self) -> int:
        """How many requests all replicas ended so."""
        return self._cut_off


def deployment(ray: Any, serve: Any, recipe: Recipe, share: Share, keeper_name: str) -> Any:
    """The replicas as Ray Serve runs them.

    Args:
        ray, serve: the packages.
        recipe: makes a replica.
        share: how many, and what each takes of the cluster.
        keeper_name: of the `Keeper`, an actor in the namespace `NAMESPACE`.
    """
    options = recipe.options

    def build() -> FastAPI:
        try:
            keeper = ray.get_actor(keeper_name, namespace=NAMESPACE)
        except ValueError:
            serve.shutdown()
            raise
        ray.get(keeper.joined.remote(ray.get_runtime_context().current_actor))
        try:
            name = serve.get_replica_context().replica_id.unique_id
            app = recipe.build(Replica(name, share.replicas), share.threads)
        except Exception as error:
            known = isinstance(error, LayercoopError)
            line = str(error) if known else f"{type(error).__name__}: {reason(error)[:500]}"
            status = error.status if isinstance(error, LayercoopError) else RunError.status
            ray.get(keeper.failed.remote(f"on node {ray.util.get_node_ip_address()}: {line}", status))
            raise
        app.state.watching = asyncio.ensure_future(end_with_command(keeper, app.state.engine))
        return app

    async def end_with_command(keeper: Any, engine: Engine) -> None:
        try:
            await keeper.draining.remote()
            # Ray Serve ends a replica that has nothing under way any more before this time is over.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(keeper.wait.remote(), options.drain)
            await keeper.cut.remote(engine.under_way)
            engine.close()
            await keeper.wait.remote()
        except ray.exceptions.RayError:
            await asyncio.to_thread(serve.shutdown)

    class Server:
        async def check_health(self) -> None:
            failed = self.app.state.engine.failed  # type: ignore[attr-defined]
            if failed is not None:
                raise RuntimeError(failed)  # Ray Serve replaces this replica

    made = serve.deployment(
        serve.ingress(build)(Server),
        name="server",
        num_replicas=share.replicas,
        ray_actor_options={
            "num_cpus": share.threads,
            "num_gpus": share.gpus,
            "runtime_env": {"env_vars": trace_variables() if options.traces else {}},
        },
        # The replica itself refuses what is too much, with a status that says when to come again.
        max_ongoing_requests=options.parallel + options.queue + _SHORT,
        max_queued_requests=share.replicas * (options.parallel + options.queue),
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=options.drain + END_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return made.bind()
