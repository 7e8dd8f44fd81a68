"""Replicas of the server: their share of a cluster, what one of several refuses, and requests that are wrong."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving.app import Served, make_app
from layercoop_fast.serving.masks import NamedMasks
from layercoop_fast.serving.options import Access, ServerOptions
from layercoop_fast.serving.ray_replica import Recipe
from layercoop_fast.serving.ray_serve import _wait
from layercoop_fast.serving.replicas import Replica, Share, share_out

MASK = {"name": "other", "layer_mask": "2"}
ADMIN = {"Authorization": "Bearer admin"}


def nodes(*has: tuple[int, int]) -> list[dict[str, Any]]:
    """Nodes with so many processors and GPUs, and one that is gone."""
    alive = [
        {"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus), "node:1": 1.0}} for cpus, gpus in has
    ]
    return [*alive, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]


@pytest.mark.parametrize(
    ("has", "replicas", "share"),
    [
        (((8, 0), (8, 0)), None, Share(2, 8, 0)),
        (((8, 0), (0, 0)), None, Share(1, 8, 0)),  # a head without processors has no replica
        (((8, 0), (8, 0)), 3, Share(3, 4, 0)),
        (((8, 0), (3, 0)), 3, Share(3, 3, 0)),
        (((2, 0),), 2, Share(2, 1, 0)),
        (((16, 2), (16, 4), (64, 0)), None, Share(6, 4, 1)),
        (((16, 2), (2, 4)), 1, Share(1, 1, 1)),
    ],
)
def test_what_each_replica_takes(has: tuple[tuple[int, int], ...], replicas: int | None, share: Share) -> None:
    assert share_out(nodes(*has), replicas, gpus=share.gpus > 0) == share


@pytest.mark.parametrize(
    ("has", "replicas", "gpus", "says"),
    [
        (((2, 0), (1, 0)), 4, False, "replicas=4: the Ray cluster has 3 processors"),
        (((8, 1),), 2, True, "replicas=2: the Ray cluster has 1 GPUs"),
        (((8, 0),), None, True, "has no GPUs"),
        (((0, 4),), None, False, "has no processors"),
    ],
)
def test_a_cluster_without_room(has: tuple[tuple[int, int], ...], replicas: int | None, gpus: bool, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        share_out(nodes(*has), replicas, gpus=gpus)


def ask(direct: LayerSkipModel, replica: Replica, *asked: tuple[str, str]) -> list[httpx.Response]:
    """Answers of a replica, which computes nothing here."""
    masks = NamedMasks(direct, "tiny", {"fast": "1,3"}, 8)
    app = make_app(Served(direct, masks, ServerOptions(), Access(admin_keys=("admin",)), replica=replica))

    async def answers() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny", headers=ADMIN) as http:
            return [await http.request(way, path, json=MASK if way == "POST" else None) for way, path in asked]

    return asyncio.run(answers())


def test_one_of_several_changes_no_masks(direct: LayerSkipModel) -> None:
    asked = (("POST", "/v1/masks"), ("DELETE", "/v1/masks/fast"), ("GET", "/v1/models"))
    added, removed, models = ask(direct, Replica("one", 2), *asked)
    assert added.status_code == removed.status_code == 409
    assert added.json()["error"]["code"] == "masks_are_fixed"
    assert "2 replicas answer here" in added.json()["error"]["message"]
    assert [each["id"] for each in models.json()["data"]] == ["tiny", "tiny:fast"]
    assert ask(direct, Replica("one", 1), ("POST", "/v1/masks"))[0].status_code == 201


def test_metrics_name_the_replica(direct: LayerSkipModel) -> None:
    (page,) = ask(direct, Replica("one", 2), ("GET", "/metrics"))
    series = [line for line in page.text.splitlines() if not line.startswith("#")]
    assert len(series) > 3
    assert all(re.match(r'layercoop:\w+\{([^}]*,)?replica="one"[,}]', line) for line in series)


def test_files_that_are_not_on_a_node() -> None:
    recipe = Recipe(lambda: pytest.fail("the model was opened"), ["/", "/not/there"], ServerOptions(), "cpu")
    with pytest.raises(RequestError, match="/not/there is not there: it has to be under the same path on every node"):
        recipe.build(Replica("one", 2), 1)


@pytest.mark.parametrize("controller_is_there", [True, False])
def test_replicas_that_somebody_ended_while_they_started(controller_is_there: bool) -> None:
    class RayError(Exception):
        """As Ray raises it where an actor is gone."""

    def status() -> SimpleNamespace:
        if not controller_is_there:
            raise RayError
        return SimpleNamespace(applications={})

    nothing = SimpleNamespace(remote=list)
    keeper = SimpleNamespace(failures=nothing, replicas=nothing)
    ray = SimpleNamespace(get=lambda found: found, exceptions=SimpleNamespace(RayError=RayError))
    with pytest.raises(RunError, match="somebody has ended Ray Serve"):
        _wait(ray, SimpleNamespace(status=status), keeper, Share(2, 1, 0), lambda line: pytest.fail(line))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--replicas", 2), "--replicas 2 belongs to --ray: say which Ray cluster, for example --ray auto"),
        (("--ray", "auto", "--replicas", 0), "--replicas"),
        (("--ray", "ray://127.0.0.1:10001"), "write auto, or HOST:PORT"),
        (("--ray", "auto", "--port", 0), "--port 0 with --ray: the head node listens"),
        (("--ray", "auto", "--device", "cuda:1"), "--device cuda:1 with --ray: ask for cpu, or cuda for a GPU each"),
        (("--ray", "auto", "--connections", 5), "--connections 5 with --ray: Ray's proxy has the connections"),
        (("--ray", "auto", "--client-timeout", 5.5), "--client-timeout 5.5 with --ray: Ray's proxy has the"),
        (("--ray", "auto", "--mask", "13-18"), "write NAME=BLOCKS"),
    ],
)
def test_a_wrong_request_is_one_line(run: Any, folder: Path, arguments: tuple[object, ...], says: str) -> None:
    status, _, error = run("serve", folder, *arguments)
    assert status == 2
    assert says in error
    assert error.count("\n") == 1


def test_ray_serve_is_not_installed(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, error = run("serve", folder, "--ray", "auto")
    assert (status, error.count("\n")) == (2, 1)
    assert "pip install 'layercoop-fast[ray-serve]'" in error


@pytest.mark.needs("grpc")
@pytest.mark.filterwarnings("ignore")  # ray's own warnings are not ours
def test_an_address_without_a_cluster(run: Any, folder: Path) -> None:
    for address, says in (("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"), ("nowhere", "write HOST:PORT")):
        status, _, error = run("serve", folder, "--ray", address)
        assert status == 2
        assert says in error
        assert error.count("\n") == 1
