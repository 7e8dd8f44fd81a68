"""The engine without its thread, step by step."""

from __future__ import annotations

import asyncio
import time

import pytest

from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.requests import Request
from layercoop_fast.serving.engine import Engine, Ticket
from layercoop_fast.serving.failures import RefusedError
from layercoop_fast.serving.metrics import Metrics
from layercoop_fast.serving.options import ServerOptions

NAME = 'model_name="tiny"'


class Stepped:
    """An engine whose steps the test takes."""

    def __init__(self, model: LayerSkipModel, **options: int) -> None:
        self.metrics = Metrics(model, lambda: self.engine.under_way)
        self.engine = Engine(model, ServerOptions(**options), self.metrics)
        self.engine._loop = asyncio.get_running_loop()

    def submit(self, *n_new: int) -> Ticket:
        mask = self.engine.model.mask()
        return self.engine.submit("tiny", [Request((5, 6, 7), mask, count, ignore_eos=True) for count in n_new])

    def step(self) -> None:
        touched = self.engine.model.batcher.step()
        self.engine._tell([(one, len(one.steps)) for one in touched], time.perf_counter())

    def text(self) -> str:
        return self.metrics.text().decode()


@pytest.fixture(autouse=True)
def at_rest(direct: LayerSkipModel) -> None:
    assert direct.batcher.idle


def test_one_choice_that_ends_early_counts_as_ended(direct: LayerSkipModel) -> None:
    async def run() -> None:
        stepped = Stepped(direct)
        ticket = stepped.submit(2, 20)
        while not ticket.runnings[0].ended:
            stepped.step()
        assert not ticket.ended
        assert stepped.engine.under_way == 1
        assert f'request_success_total{{finished_reason="length",{NAME}}} 1.0' in stepped.text()
        ticket.cancel()
        assert stepped.engine.under_way == 0
        direct.batcher.cancel(*ticket.runnings)

    asyncio.run(run())


def test_metrics_of_a_mask_that_goes_while_it_answers_go_with_its_last_request(direct: LayerSkipModel) -> None:
    async def run() -> None:
        stepped = Stepped(direct)
        ticket = stepped.submit(5)
        stepped.step()
        stepped.metrics.forget("tiny")
        assert NAME in stepped.text()
        while not ticket.ended:
            stepped.step()
        assert NAME not in stepped.text()

    asyncio.run(run())


def test_the_queue_takes_as_many_as_it_says_and_no_more(direct: LayerSkipModel) -> None:
    async def run() -> None:
        stepped = Stepped(direct, parallel=2, queue=3)
        tickets = [stepped.submit(9, 9), stepped.submit(9, 9), stepped.submit(9)]
        with pytest.raises(RefusedError) as found:
            stepped.submit(9)
        assert (found.value.status, found.value.headers["Retry-After"]) == (429, "2")
        tickets[0].cancel()
        with pytest.raises(RefusedError):
            stepped.submit(9, 9, 9)
        tickets.append(stepped.submit(9, 9))
        for ticket in tickets:
            ticket.cancel()
            direct.batcher.cancel(*ticket.runnings)

    asyncio.run(run())


def test_tokens_that_came_since_the_last_time_come_together(direct: LayerSkipModel) -> None:
    expected = direct.generate([5, 6, 7], max_new_tokens=5, ignore_eos=True).tokens

    async def run() -> None:
        stepped = Stepped(direct)
        ticket = stepped.submit(5)
        came = ticket.arrivals()
        stepped.step()
        stepped.step()
        first = await anext(came)
        while not ticket.ended:
            stepped.step()
        rest = await anext(came)
        assert [len(first), len(rest)] == [2, 3]
        assert [step.token for _, step in (*first, *rest)] == expected
        with pytest.raises(StopAsyncIteration):
            await anext(came)

    asyncio.run(run())
