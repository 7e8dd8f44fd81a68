"""What the benchmarks for pytest share: sizes, the model, the machine in the results, and how a way is timed.

    layercoop-fast bench engine --quick         or        cd benchmarks && pytest engine

A benchmark is a test whose group says what is timed; it times one way of doing it, named by `clock("ours", ...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from machine import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=("quick", "full"), default="quick")
    parser.addoption("--model", default=None, help="checkpoint folder; default the small real model")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["layercoop_fast"] = machine()


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to run at the sizes of the published figures."""
    return bool(request.config.getoption("--size") == "full")


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> str:
    """The checkpoint folder."""
    from small_model import small_model

    return request.config.getoption("--model") or str(small_model())


@pytest.fixture
def clock(benchmark: Any) -> Callable[..., Any]:
    """`clock(way, call, rounds=5, setup=None, scale=1)`: time a way of doing what the test's group names.

    `setup()` runs before each round and is not timed; `scale` is the factor from what is run to what the group names,
    where a way is too slow to run in full. Returns what the last call returned.
    """

    def run(
        way: str,
        call: Callable[..., Any],
        *,
        rounds: int = 5,
        setup: Callable[[], Any] | None = None,
        scale: float = 1.0,
    ) -> Any:
        benchmark.extra_info.update(way=way, scale=scale)
        warmup = 1 if rounds > 1 else 0
        if setup is None:
            return benchmark.pedantic(call, rounds=rounds, warmup_rounds=warmup)
        return benchmark.pedantic(call, setup=lambda: ((setup(),), {}), rounds=rounds, warmup_rounds=warmup)

    return run
