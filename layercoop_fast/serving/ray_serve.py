"""Replicas of the server on the nodes of a Ray cluster, by Ray Serve (extra `[ray-serve]`).

Each replica opens the model on its node and runs the application of `serving/app.py`. Ray Serve's proxy on the head
node listens, hands each request to one of them, restarts those that fail, and cancels what a client no longer waits
for.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from types import FrameType
from typing import Any

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import reason
from layercoop_fast.serving.options import ServerOptions
from layercoop_fast.serving.ray_replica import END_SECONDS, NAMESPACE, Keeper, Recipe, deployment
from layercoop_fast.serving.replicas import RayOptions, Share, share_out
from layercoop_fast.workers.ray_cluster import join_cluster

_APP = "layercoop"
_STATUS_SECONDS = 5.0
# How long Ray may take to find room that is there, and replicas to have a process before the user is told.
_ROOM_SECONDS, _START_SECONDS = 5.0, 20.0
_GONE = "the replicas are gone: somebody has ended Ray Serve on this cluster"
# All replicas alike: else the proxy fills those of its own node before it sends a request anywhere else.
_ROUTING = {"RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0", "RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING": "0"}
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def serve_replicas(recipe: Recipe, wanted: RayOptions, names: str, say: Callable[[str], None]) -> int:
    """Serve by replicas until a signal comes; returns the exit status: 0 where all that was under way was answered.

    Args:
        recipe: makes a replica.
        wanted: where, and how many.
        names: of the model and its masks, for the line that says where they are served.
        say: tells the user a line.

    Raises `RequestError` where ray is not installed, no cluster answers or has room, and for what a replica refuses;
    `RunError` where replicas fail, or are ended by somebody else.
    """
    if recipe.device not in ("cpu", "cuda"):
        raise RequestError(f"device={recipe.device} with ray=: ask for cpu, or cuda for a GPU each")
    if recipe.options.port == 0:
        raise RequestError("port=0 with ray=: the head node listens, so name a port that is free there")
    for bound, usual in (("connections", ServerOptions.connections), ("client_timeout", ServerOptions.client_timeout)):
        if (value := getattr(recipe.options, bound)) != usual:
            raise RequestError(
                f"{bound}={value:g} with ray=: Ray's proxy has the connections, and no such bound: leave it out, and "
                "put a proxy of your own in front"
            )
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
        check_room(ray, share)
        return _serve(ray, serve, recipe, share, names, say)
    finally:
        ray.shutdown()


def check_room(ray: Any, share: Share) -> None:
    """Raise `RequestError` where others hold what the replicas need: Ray would wait for it without a word.

    Ray itself looks for the room, node by node: for a placement group, which is given back at once.
    """
    each = {name: count for name, count in (("CPU", share.threads), ("GPU", share.gpus)) if count}
    group = ray.util.placement_group([each] * share.replicas)
    try:
        found = group.wait(_ROOM_SECONDS)
    finally:
        ray.util.remove_placement_group(group)
    if not found:
        free = ray.available_resources()
        needs = " and ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in each.items())
        there = " and ".join(f"{free.get(name, 0):g} {name}s" for name in each)
        raise RequestError(
            f"the nodes of the Ray cluster have no room for {share.replicas} replicas, each with {needs} of one node "
            f"({there} are free in all): ask for fewer, or wait until others are done"
        )


def _serve(ray: Any, serve: Any, recipe: Recipe, share: Share, names: str, say: Callable[[str], None]) -> int:
    options = recipe.options
    name = f"keeper-{uuid.uuid4().hex}"
    keeper = ray.remote(Keeper).options(num_cpus=0, name=name, namespace=NAMESPACE).remote()
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
        target = serve.RunTarget(target=deployment(ray, serve, recipe, share, name), name=_APP, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        _wait(ray, serve, keeper, share, say)
        where = f"[{options.host}]" if ":" in options.host else options.host
        plural = "s" if share.threads > 1 else ""
        with _signals() as came:  # before the line, after which a signal may come at once
            say(
                f"serving on http://{where}:{options.port} of the Ray cluster's head node: {share.replicas} replicas "
                f"with {share.threads} thread{plural} each: {names}"
            )
            try:
                _watch(ray, serve, came)
                return _drain(ray, serve, keeper, options.drain, came)
            except ray.exceptions.RayError as error:
                raise RunError(_GONE) from error
    finally:
        with redirect_stdout(StringIO()):  # where Ray says that the controller of Ray Serve did not survive its end
            serve.shutdown()
            ray.shutdown()


def _wait(ray: Any, serve: Any, keeper: Any, share: Share, say: Callable[[str], None]) -> None:
    """Until every replica answers; the first that does not start ends it. The user is told of those that wait."""
    began, told = time.monotonic(), False
    while True:
        try:
            failures = ray.get(keeper.failures.remote())
            missing = share.replicas - len(ray.get(keeper.replicas.remote()))
            found = serve.status().applications.get(_APP)
        except ray.exceptions.RayError as error:
            raise RunError(_GONE) from error
        if failures:
            line, status = failures[0]
            kind = RequestError if status == RequestError.status else RunError
            raise kind(f"a replica did not start {line}")
        if found is None:
            raise RunError(_GONE)
        if found.status == "RUNNING":
            return
        if found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RunError(f"the replicas did not start: {' '.join(found.message.split())}")
        if missing > 0 and not told and time.monotonic() - began > _START_SECONDS:
            say(f"{missing} of {share.replicas} replicas have no process yet: they wait for room on the Ray cluster")
            told = True
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
                raise RunError(_GONE)
            looked = time.monotonic()


def _drain(ray: Any, serve: Any, keeper: Any, seconds: float, came: list[int]) -> int:
    """Take no new requests, and let current ones end; a second signal ends them at once.

    Returns the exit status: 1 where replicas say that they cut requests off, or were killed, by the signal or by Ray.
    """

    def delete() -> None:
        # It waits for a minute, the loop below as long as the replicas may take.
        with suppress(TimeoutError, ray.exceptions.RayError):
            serve.delete(_APP)

    began, ended = time.monotonic(), False
    ray.get(keeper.drain.remote())
    deleting = threading.Thread(target=delete, name="layercoop-delete", daemon=True)
    deleting.start()
    while _there(ray, serve):
        if len(came) > 1 and not ended:
            for replica in ray.get(keeper.replicas.remote()):
                ray.kill(replica)
            ended = True
        time.sleep(0.1)
    deleting.join()  # a call to Ray after its end would start a cluster of its own
    killed = ended or time.monotonic() - began > seconds + END_SECONDS
    return 1 if killed or ray.get(keeper.cut_off.remote()) else 0
