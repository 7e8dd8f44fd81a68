"""Replicas of the server on the nodes of a Ray cluster, by Ray Serve (extra `[ray-serve]`).

Each replica opens the model on its node and runs the application of `serving/app.py`. Ray Serve's proxy on the head
node listens, hands each request to one of them, restarts those that fail, and cancels what a client no longer waits
for. Replicas are detached actors: they would outlive the command. So each watches an actor that ends with the command,
and takes Ray Serve down when that is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from types import FrameType
from typing import TYPE_CHECKING, Any

from layercoop_fast.errors import LayercoopError, RequestError, RunError
from layercoop_fast.files import reason
from layercoop_fast.serving.options import ServerOptions
from layercoop_fast.serving.replicas import RayOptions, Replica, Share, share_out
from layercoop_fast.workers.ray_cluster import join_cluster

if TYPE_CHECKING:
    from fastapi import FastAPI

    from layercoop_fast.serving.app import Served

_APP, _DEPLOYMENT, _NAMESPACE = "layercoop", "server", "layercoop"
# Requests that a replica takes besides those that are computed or wait: short ones, for /health or the board.
_SHORT = 64
_STATUS_SECONDS = 5.0
_HEALTH_SECONDS = 3.0
# All replicas alike: else the proxy fills those of its own node before it sends a request anywhere else.
_ROUTING = {"RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0", "RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING": "0"}
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


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
    """An actor that ends with the command, and through which replicas tell it why they do not start."""

    def __init__(self) -> None:
        self._replicas: list[Any] = []
        self._failures: list[tuple[str, int]] = []

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


def serve_replicas(recipe: Recipe, wanted: RayOptions, say: Callable[[str], None]) -> int:
    """Serve by replicas until a signal comes; returns the exit status: 0 where all that was under way was answered.

    Args:
        recipe: makes a replica.
        wanted: where, and how many.
        say: tells the user a line.

    Raises `RequestError` where ray is not installed, no cluster answers or has room, and for what a replica refuses;
    `RunError` where replicas fail, or are ended by somebody else.
    """
    if recipe.device not in ("cpu", "cuda"):
        raise RequestError(f"device={recipe.device} with ray=: ask for cpu, or cuda for a GPU each")
    if recipe.options.port == 0:
        raise RequestError("port=0 with ray=: the head node listens, so name a port that is free there")
    assert wanted.ray is not None
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise RequestError("ray= needs an extra: pip install 'layercoop-fast[ray-serve]'") from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)

    join_cluster(ray, None if wanted.ray == "auto" else wanted.ray, written="HOST:PORT")
    try:
        running = serve.status()
        if running.proxies or running.applications:
            raise RequestError(
                "Ray Serve runs on this cluster already, with an address of its own: end it by `serve shutdown`, or "
                "name another cluster"
            )
        share = share_out(ray.nodes(), wanted.replicas, gpus=recipe.device == "cuda")
        _check_free(ray.available_resources(), share)
        return _serve(ray, serve, recipe, share, say)
    finally:
        ray.shutdown()


def _check_free(free: dict[str, float], share: Share) -> None:
    """Raise `RequestError` where others hold what the replicas need: Ray would wait for it without a word."""
    for name, each in (("CPU", share.threads), ("GPU", share.gpus)):
        if share.replicas * each > free.get(name, 0):
            raise RequestError(
                f"{share.replicas} replicas take {share.replicas * each} {name}s of the Ray cluster, and "
                f"{free.get(name, 0):g} are free: ask for fewer, or wait until others are done"
            )


def _serve(ray: Any, serve: Any, recipe: Recipe, share: Share, say: Callable[[str], None]) -> int:
    options = recipe.options
    name = f"layercoop-{uuid.uuid4().hex}"  # the closure below travels by pickle, and a handle in it may end its actor
    keeper = ray.remote(Keeper).options(num_cpus=0, name=name, namespace=_NAMESPACE).remote()
    ray.get(keeper.failures.remote())
    try:
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": options.host, "port": options.port, "keep_alive_timeout_s": 30},
                logging_config={"log_level": "ERROR", "enable_access_log": False},
                controller_options={"runtime_env": {"env_vars": _ROUTING}},
            )
        except Exception as error:
            where = f"{options.host}, port {options.port} of the head node"
            why = reason(getattr(error, "cause", error))[:300]  # of an error in an actor, not its traceback
            raise RequestError(f"Ray Serve cannot listen on {where}: {why}") from error
        target = serve.RunTarget(target=_deployment(ray, serve, recipe, share, name), name=_APP, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        _wait(ray, serve, keeper)
        where = f"[{options.host}]" if ":" in options.host else options.host
        plural = "s" if share.threads > 1 else ""
        say(
            f"serving on http://{where}:{options.port} of the Ray cluster's head node: {share.replicas} replicas with "
            f"{share.threads} thread{plural} each"
        )
        with _signals() as came:
            _watch(ray, serve, came)
            return _drain(ray, serve, keeper, options.drain, came)
    finally:
        with redirect_stdout(StringIO()):  # where Ray says that the controller of Ray Serve did not survive its end
            serve.shutdown()
            ray.shutdown()


def _deployment(ray: Any, serve: Any, recipe: Recipe, share: Share, keeper_name: str) -> Any:
    """The replicas as Ray Serve runs them."""
    options = recipe.options

    def build() -> FastAPI:
        try:
            keeper = ray.get_actor(keeper_name, namespace=_NAMESPACE)
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
        app.state.watching = asyncio.ensure_future(end_with_command(keeper))
        return app

    async def end_with_command(keeper: Any) -> None:
        try:
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
        name=_DEPLOYMENT,
        num_replicas=share.replicas,
        ray_actor_options={"num_cpus": share.threads, "num_gpus": share.gpus},
        # The replica itself refuses what is too much, with a status that says when to come again.
        max_ongoing_requests=options.parallel + options.queue + _SHORT,
        max_queued_requests=share.replicas * (options.parallel + options.queue),
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=options.drain,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return made.bind()


def _wait(ray: Any, serve: Any, keeper: Any) -> None:
    """Until every replica answers; the first that does not start ends it."""
    while True:
        failures = ray.get(keeper.failures.remote())
        if failures:
            line, status = failures[0]
            kind = RequestError if status == RequestError.status else RunError
            raise kind(f"a replica did not start {line}")
        found = serve.status().applications[_APP]
        if found.status == "RUNNING":
            return
        if found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RunError(f"the replicas did not start: {' '.join(found.message.split())}")
        time.sleep(0.1)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came; what is ignored stays so: SIGHUP under nohup."""
    came: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        came.append(number)

    taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, take) for number in taken}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _there(ray: Any, serve: Any) -> bool:
    """Whether Ray Serve runs, and the replicas are a part of it."""
    try:
        return _APP in serve.status().applications
    except ray.exceptions.RayError:
        return False


def _watch(ray: Any, serve: Any, came: list[int]) -> None:
    """Wait for a signal, and look now and then whether the replicas are still there."""
    looked = time.monotonic()
    while not came:
        time.sleep(0.1)
        if time.monotonic() - looked > _STATUS_SECONDS:
            if not _there(ray, serve):
                raise RunError("the replicas are gone: somebody has ended Ray Serve on this cluster")
            looked = time.monotonic()


def _drain(ray: Any, serve: Any, keeper: Any, seconds: float, came: list[int]) -> int:
    """Take no new requests, and let current ones end; a second signal ends them at once."""

    def delete() -> None:
        # It waits for a minute, the loop below as long as the replicas may take.
        with suppress(TimeoutError, ray.exceptions.RayError):
            serve.delete(_APP)

    began, ended = time.monotonic(), False
    deleting = threading.Thread(target=delete, name="layercoop-delete", daemon=True)
    deleting.start()
    while _there(ray, serve):
        if len(came) > 1 and not ended:
            for replica in ray.get(keeper.replicas.remote()):
                ray.kill(replica)
            ended = True
        time.sleep(0.1)
    deleting.join()  # a call to Ray after its end would start a cluster of its own
    return 1 if ended or time.monotonic() - began > seconds else 0
