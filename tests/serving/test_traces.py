"""Traces: one span for each request, with its route and status, and nothing that was asked or answered."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tiny_server import serving

from layercoop_fast.serving.traces import add_traces


def test_a_request_is_a_span_without_its_prompt(folder: Path) -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with serving(folder, prepared=lambda app: add_traces(app, provider)) as server:
        asked = {"model": "tiny", "prompt": "private words", "max_tokens": 4, "temperature": 0}
        parent = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
        answer = server.post("/v1/completions", asked, headers=parent).json()["choices"][0]["text"]
        server.post("/v1/completions", {**asked, "stream": True})
        server.post("/v1/completions", {**asked, "temperature": "private words"})
        for path in ("/health", "/metrics"):
            server.http.get(path)
    spans = [cast(dict[str, Any], json.loads(span.to_json())) for span in kept.get_finished_spans()]
    assert [span["name"] for span in spans] == ["POST /v1/completions"] * 3
    assert [span["attributes"].get("http.status_code") for span in spans] == [200, 200, 400]
    assert spans[0]["context"]["trace_id"] == f"0x{'1' * 32}"
    told = json.dumps(spans)
    assert "private" not in told
    assert json.dumps(answer)[1:-1] not in told


def test_traces_without_their_extra_are_refused_before_the_model_is_looked_at(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)
    status, _, error = run("serve", "no/such/model", "--traces")
    assert (status, error) == (2, "layercoop-fast: traces need an extra: pip install 'layercoop-fast[traces]'\n")
