"""The engine without its thread, step by step."""

from __future__ import annotations

import asyncio
import time

from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.requests import Request
from layercoop_fast.serving.engine import Engine
from layercoop_fast.serving.metrics import Metrics
from layercoop_fast.serving.options import ServerOptions


def test_one_choice_that_ends_early_counts_as_ended(direct: LayerSkipModel) -> None:
    async def run() -> None:
        metrics = Metrics(direct, lambda: engine.under_way)
        engine = Engine(direct, ServerOptions(), metrics)
        engine._loop = asyncio.get_running_loop()
        short, long = (Request((5, 6, 7), direct.mask(), n_new, ignore_eos=True) for n_new in (2, 20))
        ticket = engine.submit("tiny", [short, long])
        while not ticket.runnings[0].ended:
            engine._tell([(one, len(one.steps)) for one in direct.batcher.step()], time.perf_counter())
        assert not ticket.ended
        assert engine.under_way == 1
        assert 'request_success_total{finished_reason="length",model_name="tiny"} 1.0' in metrics.text().decode()
        ticket.cancel()
        assert engine.under_way == 0
        direct.batcher.cancel(*ticket.runnings)

    asyncio.run(run())
