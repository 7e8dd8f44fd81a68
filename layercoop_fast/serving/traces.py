"""Traces by OpenTelemetry: a span for each request, with its route, status and times, and never its body."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from fastapi import FastAPI

from layercoop_fast.errors import RequestError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def check_traces() -> None:
    """Raise `RequestError` where what `add_traces` needs is not installed."""
    try:
        for name in ("sdk.trace", "exporter.otlp.proto.http.trace_exporter", "instrumentation.fastapi"):
            import_module(f"opentelemetry.{name}")
    except ImportError as error:
        raise RequestError("traces need an extra: pip install 'layercoop-fast[traces]'") from error


def trace_variables() -> dict[str, str]:
    """OpenTelemetry's variables in the environment of this process, for processes that have another."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}


def add_traces(app: FastAPI, provider: TracerProvider | None = None) -> None:
    """Trace the requests of a server; `/health` and `/metrics` are left out.

    Args:
        app: of `make_app`.
        provider: where spans go; by default by OTLP over HTTP, as OpenTelemetry's variables in the environment say
            (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`).

    Raises `RequestError` where OpenTelemetry is not installed.
    """
    check_traces()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if provider is None:
        named = Resource.create({"service.name": "layercoop-fast"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=named)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    # Without those of single messages: a stream has one for each token.
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, excluded_urls="/health$,/metrics$", exclude_spans=["receive", "send"]
    )
