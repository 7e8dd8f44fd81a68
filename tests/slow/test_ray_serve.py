"""Two replicas on a Ray cluster of two nodes, both on this machine, as clients of one address meet them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from process_table import command_of, descendants
from tiny_models import save_tiny
from two_nodes import two_nodes

from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving.ray_serve import check_room
from layercoop_fast.serving.replicas import Share

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # ray's own warnings are not ours

LONG = {"model": "tiny", "prompt": "abc", "max_tokens": 500, "n": 16, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("ray") / "tiny", n_layers=5, max_position_embeddings=512)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two nodes with one processor each."""
    with two_nodes() as address:
        yield address


@contextmanager
def started(
    folder: Path, address: str, *options: str, variables: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and its address, once it says that it serves; `variables` are added to its environment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["serve", str(folder), "--mask", "fast=1,3", "--ray", address, "--port", str(port), *options]
    with subprocess.Popen(
        [sys.executable, "-m", "layercoop_fast", *command],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(variables or {})},
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert "2 replicas with 1 thread each: tiny, tiny:fast" in line
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def actors() -> list[str]:
    """What runs of Ray Serve, and of ours, on the nodes that this process started."""
    return [
        name
        for process in descendants(os.getpid())
        if re.match("ray::(Serve|Proxy|Keeper)", name := command_of(process))
    ]


def comes(what: Callable[[], object], seconds: float = 30.0) -> bool:
    """Whether something becomes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def pages(url: str) -> dict[str, str]:
    """The metrics of each replica, by its name; they answer by chance."""
    found: dict[str, str] = {}
    for _ in range(200):
        text = httpx.get(f"{url}/metrics").text
        found[re.findall(r'replica="(\w+)"', text)[0]] = text
        if len(found) == 2:
            break
    return found


def at_rest(url: str, aborted: int) -> bool:
    """Whether no replica computes, and so many answers were given up in all."""
    texts = pages(url).values()
    counts = [
        float(count) for text in texts for count in re.findall(r'success_total{finished_reason="abort".*} (\S+)', text)
    ]
    running = [count for text in texts for count in re.findall(r"num_requests_running{.*} (\S+)", text)]
    return sum(counts) == aborted and running == ["0.0", "0.0"]


def test_clients_meet_one_server(folder: Path, address: str) -> None:
    mask = [True, False, True, False, True]
    expected = LayerSkipModel.from_pretrained(folder).generate("abc", mask=mask, max_new_tokens=12, ignore_eos=True)
    with started(folder, address, "--replicas", "2") as (process, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            assert [model.id for model in client.models.list()] == ["tiny", "tiny:fast"]
            asked = {"model": "tiny:fast", "prompt": "abc", "max_tokens": 12, "temperature": 0}
            for _ in range(4):
                stream = client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
                assert "".join(chunk.choices[0].text for chunk in stream) == expected.text
        assert httpx.get(url).headers["content-type"].startswith("text/html")
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert len(pages(url)) == 2

        with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as response:
            next(response.iter_lines())
        assert comes(lambda: at_rest(url, 16))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=LONG, timeout=0.1)
        assert comes(lambda: at_rest(url, 32))

        with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(30) == 0
    assert comes(lambda: not actors())


def test_a_second_signal_ends_at_once(folder: Path, address: str) -> None:
    with started(folder, address) as (process, url):
        with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert process.wait(30) == 1
    assert comes(lambda: not actors())


def test_the_status_says_whether_something_was_cut_off(folder: Path, address: str) -> None:
    with started(folder, address, "--drain", "0") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with started(folder, address, "--drain", "0") as (process, url):
        with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1].startswith('data: {"error":')
        assert process.wait(30) == 1
    assert comes(lambda: not actors())


def test_traces_go_where_the_variables_of_the_command_say(folder: Path, address: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as collector:
        collector.settimeout(30)
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.getsockname()[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with started(folder, address, "--traces", variables=variables) as (process, url):
            assert httpx.get(f"{url}/v1/models").status_code == 200
            with closing(collector.accept()[0]) as connection:
                assert connection.recv(1000).startswith(b"POST /v1/traces ")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    assert comes(lambda: not actors())


def test_room_is_looked_for_node_by_node(address: str) -> None:
    import ray

    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        check_room(ray, Share(2, 1, 0))
        # Two processors are free, and no node has two.
        with pytest.raises(RequestError, match=r"no room for 1 replicas, each with 2 CPUs of one node \(2 CPUs are"):
            check_room(ray, Share(1, 2, 0))
    finally:
        ray.shutdown()


def test_replicas_end_with_a_command_that_is_killed(folder: Path, address: str) -> None:
    with started(folder, address) as (process, _):
        assert len([name for name in actors() if "ServeReplica" in name]) == 2
        process.kill()
    assert comes(lambda: not actors())


def test_what_a_replica_refuses_is_one_line(folder: Path, address: str) -> None:
    command = [sys.executable, "-m", "layercoop_fast", "serve", str(folder), "--ray", address, "--mask", "a=99"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a replica did not start on node " in done.stderr
    assert "the model has blocks 0 to 4" in done.stderr
    assert done.stderr.count("\n") == 1
    assert comes(lambda: not actors())
