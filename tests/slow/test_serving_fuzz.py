"""Requests drawn from the server's own `/openapi.json`, right and wrong ones: it answers all, as that page says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks
from tiny_models import save_tiny
from tiny_server import L, Server, serving

from layercoop_fast.serving.options import Access

pytestmark = pytest.mark.slow

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
SECONDS = 60.0
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = save_tiny(tmp_path_factory.mktemp("fuzz") / "tiny", n_layers=L, max_position_embeddings=512)
    with serving(folder, access=Access(admin_keys=("admin",))) as found:
        yield found


def test_every_answer_is_one_that_the_schema_has(server: Server) -> None:
    asked = {"model": "tiny", "prompt": "abc", "max_tokens": 8, "temperature": 0}
    before = server.post("/v1/completions", asked).json()["choices"]
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [each.ok() for each in api.get_all_operations()]
    assert len(operations) == 10
    counts: dict[int, int] = {}
    share = SECONDS / (len(operations) * len(MODES))
    for operation in operations:
        for mode in MODES:
            if mode is GenerationMode.POSITIVE or operation.body:
                _ask(operation, mode, share, counts)
    assert server.at_rest()
    assert server.post("/v1/completions", asked).json()["choices"] == before
    assert counts[200] > 50  # not all were refused
    assert counts[400] > 50
    assert set(counts) <= {200, 201, 400, 403, 404, 405, 409}


def _ask(operation: APIOperation[Any, Any, Any], mode: GenerationMode, seconds: float, counts: dict[int, int]) -> None:
    until = time.monotonic() + seconds

    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), real=st.sets(st.sampled_from(["model", "layer_mask"])))
    def ask(case: schemathesis.Case, real: set[str]) -> None:
        if time.monotonic() > until:
            return
        # Few drawn names are those of models, and few drawn texts masks.
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            if "model" in real:
                case.body["model"] = "tiny"
            if "layer_mask" in real:
                case.body["layer_mask"] = "1,3.attn"
                if operation.path == "/tokenize":
                    del case.body["layer_mask"]
        response = case.call_and_validate(checks=CHECKS, headers={"Authorization": "Bearer admin"}, timeout=60)
        counts[response.status_code] = counts.get(response.status_code, 0) + 1

    ask()
