"""What clients get wrong, one by one: a status and OpenAI's body that says what is wrong, and nothing left behind."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tiny_server import Server, serving

from layercoop_fast.serving.options import Access, ServerOptions

ASKED = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0}
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}


def refused(response: httpx.Response, status: int, says: str, param: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert says in error["message"]
    assert "\n" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("changed", "says", "param"),
    [
        ({"max_tokens": -1}, "greater than or equal to 1", "max_tokens"),
        ({"max_tokens": 2**40}, "less than", "max_tokens"),
        ({"max_tokens": "4"}, "valid integer", "max_tokens"),
        ({"max_tokens": 600}, "takes 512 tokens", "prompt"),
        ({"temperature": -0.5}, "greater than or equal to 0", "temperature"),
        ({"temperature": "hot"}, "valid number", "temperature"),
        ({"top_p": 0}, "greater than 0", "top_p"),
        ({"n": 10**9}, "less than or equal to 16", "n"),
        ({"n": 5, "prompt": ["a"] * 4}, "at most 16", "n"),
        ({"prompt": [None] * 100_000}, "a prompt is a text or a list", "prompt"),
        ({"prompt": "\ud800"}, "not valid Unicode", "prompt"),
        ({"stop": "\udfff"}, "not valid Unicode", "stop"),
        ({"layer_mask": "1," * 20_000}, "at most 20000", "layer_mask"),
        ({"str": 1}, "str is not known", "str"),
        ({"a[b]": 1}, "a[b] is not known", "a[b]"),
        ({"repetition_penalty": 1e-40}, "greater than or equal to 0.01", "repetition_penalty"),
        ({"n": 0}, "greater than or equal to 1", "n"),
        ({"n": True}, "valid integer", "n"),
        ({"stop": ["a"] * 17}, "at most 16", "stop"),
        ({"stop": [""]}, "at least one character", "stop"),
        ({"prompt": []}, "at least 1 token", "prompt"),
        ({"prompt": ""}, "empty", None),
        ({"prompt": [5, 10**9]}, "tokens are numbers from 0 to", None),
        ({"prompt": [-1]}, "tokens are numbers from 0 to", None),
        ({"prompt": {"a": 1}}, "a prompt is a text or a list", "prompt"),
        ({"prompt": [1, "a"]}, "a prompt is a text or a list", "prompt"),
        ({"prompt": [[1], []]}, "a prompt is a text or a list", "prompt"),
        ({"prompt": "x" * 10_000}, "takes 512 tokens", "prompt"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported", "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported", "presence_penalty"),
        ({"echo": True}, "echo is not supported", "echo"),
        ({"suffix": "x"}, "suffix is not supported", "suffix"),
        ({"best_of": 4}, "best_of is not supported", "best_of"),
        ({"logprobs": 100}, "less than or equal to 20", "logprobs"),
        ({"invented": 1}, "invented is not known", "invented"),
        ({"layer_mask": "0-4"}, "removes every block", "layer_mask"),
        ({"layer_mask": "9"}, "blocks 0 to 4", "layer_mask"),
        ({"layer_mask": "/etc/passwd"}, "takes blocks like", "layer_mask"),
        ({"layer_mask": [True] * 7}, "bool[5]", "layer_mask"),
        ({"layer_mask": []}, "layer_mask is what to leave out", "layer_mask"),
        ({"layer_mask": 5}, "layer_mask", "layer_mask"),
        ({"seed": 2**70}, "seed", "seed"),
    ],
)
def test_a_wrong_field_is_named(server: Server, changed: dict[str, Any], says: str, param: str | None) -> None:
    refused(server.post("/v1/completions", {**ASKED, **changed}), 400, says, param)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not valid Unicode"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}]},
            "cache is not known",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "tool_calls is not supported",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"max_completion_tokens": 0}, "greater than or equal to 1"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ({"messages": [{"role": "user", "content": "y" * 5000}]}, "takes 512 tokens"),
    ],
)
def test_a_wrong_chat_is_named(server: Server, changed: dict[str, Any], says: str) -> None:
    refused(server.post("/v1/chat/completions", {**CHAT, **changed}), 400, says)


def test_fields_that_change_nothing_are_taken(server: Server) -> None:
    harmless = {
        "user": "me",
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "best_of": 1,
        "echo": False,
    }
    assert server.post("/v1/completions", {**ASKED, **harmless}).status_code == 200
    harmless = {
        "tools": [],
        "response_format": {"type": "text"},
        "metadata": {"a": "b"},
        "store": True,
        "top_logprobs": 0,
    }
    assert server.post("/v1/chat/completions", {**CHAT, **harmless}).status_code == 200


@pytest.mark.parametrize("name", ["gpt-4", "tiny:slow", "tiny:", ":fast", "../tiny", "tiny:unnamed"])
def test_an_unknown_model_or_mask(server: Server, name: str) -> None:
    refused(server.post("/v1/completions", {**ASKED, "model": name}), 404, "there is no model", "model")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "required"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe{}", 400, ""),
        (b'{"model": "tiny", "prompt": "\xff"}', 400, ""),
        (b"[1]", 400, ""),
        (b"null", 400, ""),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400, "finite"),
        (b'{"model": "tiny", "prompt": "a", "temperature": 1e999}', 400, "finite"),
        (b"[" * 100_000, 400, ""),
        (b'{"model": "tiny", "prompt": "' + b"x" * 2**20 + b'"}', 400, "takes 512 tokens"),
        (b"x" * (5 * 2**20), 413, "larger than"),
    ],
)
def test_a_body_that_is_no_request(server: Server, body: bytes, status: int, says: str) -> None:
    response = server.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    refused(response, status, says)


def test_a_body_that_says_no_size_is_counted_as_it_comes(server: Server) -> None:
    def endless() -> Any:
        for _ in range(200):
            yield b" " * 2**16

    response = server.http.post("/v1/completions", content=endless(), headers={"Content-Type": "application/json"})
    refused(response, 413, "larger than")


def test_unknown_paths_and_methods(server: Server) -> None:
    refused(server.http.get("/v1/nothing"), 404, "Not Found")
    refused(server.http.get("/v1/completions"), 405, "Method Not Allowed")
    for path in ("/..%2f..%2fetc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/%00", "//etc/passwd"):
        response = server.http.get(path)
        assert response.status_code == 404
        assert "root:" not in response.text


def raw(server: Server, data: bytes) -> bytes:
    """What the server answers to bytes on its socket."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while piece := connection.recv(65536):
                found += piece
        except ConnectionResetError:
            pass
        return found


def test_headers_that_are_too_long_or_no_http(server: Server) -> None:
    assert raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n").startswith(
        b"HTTP/1.1 4"
    )
    assert raw(server, b"\x16\x03\x01\x02\x00\x01").startswith(b"HTTP/1.1 400")
    assert raw(server, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n").startswith(
        b"HTTP/1.1 400"
    )
    assert server.http.get("/health").status_code == 200


def test_nothing_is_answered_to_scripts_of_other_pages(server: Server) -> None:
    response = server.http.options(
        "/v1/models", headers={"Origin": "http://evil", "Access-Control-Request-Method": "POST"}
    )
    assert "access-control-allow-origin" not in {name.lower() for name in response.headers}


def test_a_wrong_key(folder: Path) -> None:
    with serving(folder, access=Access(keys=("secret",))) as guarded:
        for given in (
            None,
            "Bearer wrong",
            "Bearer secre",
            "Bearer secrets",
            "Basic secret",
            "secret",
            "Bearer sécret",
        ):
            headers = {} if given is None else {"Authorization": given.encode()}
            for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/board/about")):
                refused(guarded.http.request(method, path, headers=headers), 401, "asks for a key")
            refused(guarded.post("/v1/completions", ASKED, headers=headers), 401, "asks for a key")
        assert guarded.http.get("/health").status_code == 200
        good = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="secret", max_retries=0)
        assert len(good.models.list().data) == 2


def test_masks_are_not_for_everybody(server: Server, folder: Path) -> None:
    refused(server.post("/v1/masks", {"name": "x", "layer_mask": "1"}), 401, "admin key")
    refused(server.http.delete("/v1/masks/fast", headers={"Authorization": "Bearer wrong"}), 401, "admin key")
    refused(server.http.delete("/v1/masks/fast", headers={"Authorization": "Bearer admin"}), 403, "stays")
    refused(server.http.delete("/v1/masks/none", headers={"Authorization": "Bearer admin"}), 404, "no mask")
    with serving(folder) as closed:
        refused(closed.post("/v1/masks", {"name": "x", "layer_mask": "1"}), 403, "without an admin key")


def test_a_reader_that_does_not_read_costs_no_more_than_its_answer(folder: Path) -> None:
    """Its request ends by itself, or by its time; others are answered meanwhile."""
    with serving(folder, ServerOptions(timeout=3)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps({**ASKED, "max_tokens": 400, "stream": True, "ignore_eos": True, "n": 8}).encode()
        head = HEAD.format(len(body))
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((host, int(port)))
            slow.sendall(head.encode() + body)
            assert server.post("/v1/completions", ASKED).status_code == 200
            assert server.at_rest()
        assert server.post("/v1/completions", ASKED).status_code == 200


def test_a_request_that_takes_too_long_is_ended(folder: Path) -> None:
    with serving(folder, ServerOptions(timeout=0.05)) as server:
        long = {**ASKED, "max_tokens": 500, "ignore_eos": True}
        refused(server.post("/v1/completions", long), 504, "took longer than 0.05 s")
        with server.http.stream("POST", "/v1/completions", json={**long, "stream": True}) as response:
            events = [line for line in response.iter_lines() if line]
        assert (
            json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout" or response.status_code == 504
        )
        assert server.at_rest()


def test_more_than_the_queue_holds_is_told_to_come_again(folder: Path) -> None:
    with serving(folder, ServerOptions(parallel=1, queue=1)) as server:
        long = {**ASKED, "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 16}
        with server.http.stream("POST", "/v1/completions", json=long) as one:
            lines = one.iter_lines()  # held: httpx closes the stream with it
            next(lines)
            response = server.post("/v1/completions", ASKED)
            refused(response, 429, "too many requests")
            assert int(response.headers["Retry-After"]) >= 1
        assert server.at_rest()
        with pytest.raises(openai.BadRequestError, match="less than or equal to 16"):
            server.openai.completions.create(**{**ASKED, "n": 17})


def test_keys_and_values_that_do_not_fit(folder: Path) -> None:
    with serving(folder) as server:
        server.model.executor.pool.budget = 1
        refused(server.post("/v1/completions", ASKED), 400, "the budget is 1")


def test_a_mask_that_is_removed_while_it_answers_goes_on(server: Server) -> None:
    key = {"Authorization": "Bearer admin"}
    server.post("/v1/masks", {"name": "brief", "layer_mask": "2"}, headers=key)
    asked = {**ASKED, "model": "tiny:brief", "max_tokens": 120, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=asked) as response:
        lines = response.iter_lines()
        next(lines)
        assert server.http.delete("/v1/masks/brief", headers=key).status_code == 200
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    refused(server.post("/v1/completions", asked), 404, "no model")


def test_an_engine_that_fails_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder) as server:

        def broken() -> Any:
            raise MemoryError("no more")

        monkeypatch.setattr(server.model.batcher, "step", broken)
        response = server.post("/v1/completions", ASKED)
        assert response.status_code >= 499
        assert server.http.get("/health").status_code == 503
        refused(server.post("/v1/completions", ASKED), 503, "engine has failed")


class Kept(logging.Handler):
    """Keeps the messages that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def request_log() -> Iterator[list[str]]:
    """The lines that the server writes about requests while the block runs."""
    log, kept = logging.getLogger("layercoop_fast.serving.requests"), Kept()
    level = log.level
    log.addHandler(kept)
    log.setLevel(logging.INFO)
    try:
        yield kept.lines
    finally:
        log.removeHandler(kept)
        log.setLevel(level)


def test_nothing_of_a_prompt_is_in_the_log(folder: Path) -> None:
    for told in (False, True):
        # A line is written after its answer was sent: the log is kept until the server has ended.
        with request_log() as lines, serving(folder, ServerOptions(log_prompts=told)) as server:
            server.post("/v1/completions", {**ASKED, "prompt": "private words"})
        (line,) = [line for line in map(json.loads, lines) if line["path"] == "/v1/completions"]
        assert (line["status"], line["prompt_tokens"], line["completion_tokens"]) == (200, 13, 4)
        assert ("private words" in json.dumps(line)) == told


def test_a_chat_that_names_no_length_gets_what_fits(folder: Path) -> None:
    """Of the memory for keys and values, here too little for all positions of the model."""
    with serving(folder) as server:
        pool = server.model.executor.pool
        pool.budget = 3 * int(pool.page_bytes.sum())  # 48 tokens
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "ignore_eos": True}
        answer = server.post("/v1/chat/completions", chat).json()
        assert answer["usage"]["total_tokens"] == 48
        assert answer["choices"][0]["finish_reason"] == "length"
