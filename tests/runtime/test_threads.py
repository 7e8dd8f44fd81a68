"""One model and many threads: answers, errors, streams that are let go of, forks, and who waits for whom."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import threading
import time
import weakref
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from fake_executor import FakeExecutor, next_word
from threads import SECONDS, in_threads
from tiny_models import save_tiny, tiny_model
from torch import Tensor
from transformers import AutoTokenizer

from layercoop_fast import LayerSkipModel, Sampling
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RunError
from layercoop_fast.runtime.batching import Batcher
from layercoop_fast.runtime.executor import Rows
from layercoop_fast.runtime.gpu import GpuExecutor
from layercoop_fast.runtime.opening import Opened
from layercoop_fast.runtime.requests import Request
from layercoop_fast.runtime.turns import Turns

WHOLE = np.full(3, 3, dtype=np.uint8)


def request(prompt: list[int], n_new: int = 5, **more: object) -> Request:
    return Request(tuple(prompt), WHOLE, n_new, **more)


def expected(asked: Request) -> list[int]:
    tokens = list(asked.prompt)
    for _ in range(asked.max_new_tokens):
        tokens.append(next_word(asked.mask, tokens))
    return tokens[len(asked.prompt) :]


def opened(executor: FakeExecutor) -> LayerSkipModel:
    return LayerSkipModel(Opened(executor, None, frozenset(), WHOLE, None))


def left(model: LayerSkipModel) -> tuple[int, int, int]:
    model.forget()
    return len(model.batcher.running), len(model.batcher.waiting), model.executor.pool.used


@pytest.fixture(scope="module")
def stress() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "runtime" / "stress_threads.py"
    spec = importlib.util.spec_from_file_location("stress_threads", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "stress_threads", module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("executor", ["native", "transformers", "gpu", "recurrent"])
def test_answers_in_threads_are_those_of_one(executor: str, stress: ModuleType, tmp_path: Path) -> None:
    if executor == "gpu":
        skeleton = Skeleton(tiny_model("llama", 3))
        held = np.full(3, 3, dtype=np.uint8)
        model = LayerSkipModel(Opened(GpuExecutor(skeleton, 1 << 22), None, frozenset(), held, None))
    else:
        family = "mamba" if executor == "recurrent" else "llama"
        path = save_tiny(tmp_path / family, family, 3)
        model = LayerSkipModel.from_pretrained(
            path, "fp32", executor="native" if executor == "native" else "transformers"
        )
    if executor != "recurrent":
        stress.tighten(model)
    threads, requests = (8, 12) if executor == "native" else (4, 3)
    found = stress.stress(model, threads, requests, longest=24 if executor == "native" else 6)
    assert found["right"] == found["asked"] == threads * requests, found
    assert not found["left"]


def test_texts_and_stop_strings_in_threads(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "llama", "llama", 3)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    tokenizer.save_pretrained(path)
    model = LayerSkipModel.from_pretrained(path, "fp32", kv_memory=1 << 20)
    texts = ["It was the best of times", "It was the worst of times, ", "Call me"]
    right = [model.generate(text, max_new_tokens=12, ignore_eos=True) for text in texts]
    assert right[0].prompt_tokens > 5
    stops = [answer.text[4:6] for answer in right]
    stopped = [
        model.generate(text, max_new_tokens=12, stop=stop, ignore_eos=True).text
        for text, stop in zip(texts, stops, strict=True)
    ]

    def ask(number: int) -> None:
        for turn in range(6):
            at = (number + turn) % 3
            assert model.generate(texts[at], max_new_tokens=12, ignore_eos=True).text == right[at].text
            steps = model.stream(texts[at], max_new_tokens=12, stop=stops[at], ignore_eos=True)
            assert "".join(step.text for step in steps) == stopped[at]

    in_threads(*(lambda number=number: ask(number) for number in range(6)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_1600_of_1600_are_right(dtype: str, stress: ModuleType, tmp_path: Path) -> None:
    model = LayerSkipModel.from_pretrained(save_tiny(tmp_path / "llama", "llama", 3), dtype)
    stress.tighten(model)
    found = stress.stress(model, threads=8, requests=200)
    assert found["right"] == 1600, found
    assert not found["left"]


@pytest.mark.parametrize("end", ["close", "del", "throw", "never begun"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_stream_that_is_dropped_leaves_nothing(end: str, begun: bool) -> None:
    model = opened(FakeExecutor())
    kept = []
    for number in range(50):
        stream = model.stream([number % 50] * 20, max_new_tokens=10)
        if begun:
            next(stream)
        if end == "close":
            stream.close()
        elif end == "throw":
            with pytest.raises(KeyError):
                stream.throw(KeyError("on purpose"))
        elif end == "del":
            del stream
        elif not begun:
            kept.append(stream)  # all of them beside each other
        else:
            list(stream)
    kept.clear()
    assert left(model) == (0, 0, 0)


def test_streams_let_go_of_by_the_garbage_collector_leave_nothing() -> None:
    """In a cycle a stream ends wherever the collector happens to run: in the middle of another thread's step, too."""
    model = opened(FakeExecutor())

    def drop() -> None:
        for number in range(40):
            stream = model.stream([number, 1], max_new_tokens=10)
            next(stream)
            cycle = [stream]
            cycle.append(cycle)

    before = gc.get_threshold()
    gc.set_threshold(20)
    try:
        in_threads(drop, drop, *[lambda: model.generate([3] * 30, max_new_tokens=40)] * 2)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert left(model) == (0, 0, 0)


def test_two_streams_by_turns_from_two_threads() -> None:
    model = opened(FakeExecutor())
    asked = [request([1, 2], 30), request([1, 3], 30)]
    streams = [model.stream(one.prompt, max_new_tokens=30) for one in asked]
    found: list[list[int]] = [[], []]
    turn = threading.Semaphore(1), threading.Semaphore(0)

    def read(own: int) -> None:
        for at in range(30):
            which = (at + own) % 2  # each thread reads both, by turns
            turn[own].acquire()
            found[which].append(next(streams[which]).token)
            turn[1 - own].release()

    in_threads(lambda: read(0), lambda: read(1))
    assert found == [expected(one) for one in asked]
    assert left(model) == (0, 0, 0)


def test_requests_of_several_threads_share_calls() -> None:
    """Eight threads of 200 tokens each take some 200 calls and not 1,600."""
    executor = FakeExecutor()
    model = opened(executor)
    calls = [0]
    logits = executor.logits

    def counted(rows: Rows) -> Tensor:
        calls[0] += 1
        time.sleep(1e-4)  # as a C++ step does, this lets other threads run
        return logits(rows)

    executor.logits = counted  # type: ignore[method-assign]
    together = threading.Barrier(8)

    def ask(number: int) -> None:
        together.wait()
        assert model.generate([number], max_new_tokens=60).tokens == expected(request([number], 60))

    in_threads(*(lambda number=number: ask(number) for number in range(8)))
    assert calls[0] < 8 * 60 / 2


def test_a_long_answer_does_not_hold_up_others() -> None:
    model = opened(FakeExecutor())
    ended = []

    def ask(name: str, tokens: int) -> None:
        model.generate([1], max_new_tokens=tokens)
        ended.append(name)

    def later() -> None:
        while not model.batcher.running:
            time.sleep(1e-3)
        ask("short", 5)

    in_threads(lambda: ask("long", 400), later)
    assert ended == ["short", "long"]


@pytest.mark.parametrize("scarce", ["places", "memory"])
def test_no_call_waits_for_all_that_another_asked(scarce: str) -> None:
    """One call of 30 requests takes all the room; another one's only request begins at once all the same."""
    pages = 3 * 3 * 4 if scarce == "memory" else 1000
    batcher = Batcher(FakeExecutor(pages=pages), most=4 if scarce == "places" else 64)
    call = object()
    many = [batcher.add(request([number], 20, call=call)) for number in range(30)]
    for _ in range(3):
        batcher.step()
    one = batcher.add(request([40], 4))
    for _ in range(4):
        batcher.step()
    assert one.finish == "length"
    assert sum(each.ended for each in many) == 0
    batcher.run()
    assert [each.result().tokens for each in (one, *many)] == [expected(each.request) for each in (one, *many)]


class Faulty(FakeExecutor):
    """Fails in every call that has a text which begins with 13; says NaN after one which begins with 14."""

    def logits(self, rows: Rows) -> Tensor:
        firsts = [
            (sequence.tokens or rows.tokens[rows.sequence == number].tolist())[0]
            for number, sequence in enumerate(rows.sequences)
        ]
        if 13 in firsts:
            raise MemoryError("on purpose")
        found = super().logits(rows)
        for at, row in enumerate(rows.wanted.tolist()):
            if firsts[rows.sequence[row]] == 14:
                found[at] = torch.nan
        return found


@pytest.mark.parametrize("rewindable", [True, False])
@pytest.mark.parametrize("word", [13, 14])
def test_an_error_ends_its_own_request_alone(word: int, rewindable: bool) -> None:
    executor = Faulty()
    executor.rewindable = rewindable
    batcher = Batcher(executor)
    way = Sampling(repetition_penalty=1.0, temperature=1e-3, top_p=0.5)
    good = [batcher.add(request([number, 2], 6, sampling=way)) for number in range(3)]
    batcher.step()
    bad = batcher.add(request([word], 6, sampling=way))
    good.append(batcher.add(request([5] * 30, 6, sampling=way)))
    batcher.run()
    assert isinstance(bad.error, (MemoryError, RunError))
    assert bad.finish is None
    assert [each.result().tokens for each in good] == [expected(each.request) for each in good]
    if batcher.tree is not None:
        batcher.tree.clear()
    assert executor.pool.used == 0


def test_errors_come_to_the_thread_that_asked() -> None:
    model = opened(Faulty())

    def bad() -> None:
        for _ in range(10):
            with pytest.raises(MemoryError, match="on purpose"):
                model.generate([13, 1], max_new_tokens=5)

    def good(number: int) -> None:
        for _ in range(10):
            assert model.generate([number], max_new_tokens=4).tokens == expected(request([number], 4))

    in_threads(bad, bad, lambda: good(1), lambda: good(2))
    assert left(model) == (0, 0, 0)


def test_a_request_that_another_thread_cancels_ends() -> None:
    model = opened(FakeExecutor())
    running = model.batcher.prepare(request([1], 5000))

    def wait() -> None:
        model.batcher.start([running])
        with pytest.raises(RunError, match="cancelled"):
            model.batcher.wait([running])

    def cancel() -> None:
        while len(running.steps) < 3:
            time.sleep(1e-3)
        model.batcher.cancel(running)

    in_threads(wait, cancel)
    assert left(model) == (0, 0, 0)


def test_ctrl_c_in_the_main_thread_leaves_the_others_alone() -> None:
    """It comes at any place of a step, whosever tokens that computes."""
    model = opened(FakeExecutor(pages=10_000))
    right = [True]
    done = threading.Event()

    def others(number: int) -> None:
        while not done.is_set():
            found = model.generate([number], max_new_tokens=20).tokens
            right[0] = right[0] and found == expected(request([number], 20))

    threads = [threading.Thread(target=others, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    interrupted = 0
    try:
        for _ in range(20):
            timer = threading.Timer(0.01, signal.raise_signal, [signal.SIGINT])
            try:
                timer.start()
                try:
                    model.generate([7] * 20, max_new_tokens=10_000)
                finally:
                    timer.join()
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        done.set()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert interrupted == 20
    assert right[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert left(model) == (0, 0, 0)


def test_a_forked_child_goes_on_alone() -> None:
    model = opened(FakeExecutor())
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            model.generate([3] * 20, max_new_tokens=50)

    threads = [threading.Thread(target=others, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    stream = model.stream([5, 6], max_new_tokens=8)
    found = [next(stream).token]
    statuses = []
    for _ in range(2):
        child = os.fork()
        if not child:
            signal.alarm(20)  # a child that waits for ever is a failure too
            status = 1
            try:
                found += [step.token for step in stream]
                alone = not model.batcher.running and not model.batcher.waiting
                again = model.generate([9], max_new_tokens=6).tokens == expected(request([9], 6))
                status = 0 if alone and again and found == expected(request([5, 6], 8)) else 2
            finally:
                os._exit(status)
        statuses.append(os.waitpid(child, 0)[1])
    done.set()
    for thread in threads:
        thread.join(SECONDS)
    assert statuses == [0] * 2
    assert found + [step.token for step in stream] == expected(request([5, 6], 8))


def test_a_model_goes_when_nobody_holds_it() -> None:
    """Its weights are gigabytes: they do not wait for the garbage collector."""
    executor = FakeExecutor()
    held = weakref.ref(executor)
    model = opened(executor)
    model.generate([1, 2], max_new_tokens=3)
    stream = model.stream([1], max_new_tokens=3)
    next(stream)
    del executor
    gc.disable()
    try:
        del stream, model
        assert held() is None
    finally:
        gc.enable()


def test_what_came_before_an_error_is_handed_out() -> None:
    executor = FakeExecutor()
    model = opened(executor)
    stream = model.stream([1, 2], max_new_tokens=9)
    found = [next(stream).token]
    others = model.stream([4], max_new_tokens=2)
    list(others)  # computes the first one's tokens too
    executor.fails = True
    with pytest.raises(MemoryError):
        model.generate([3], max_new_tokens=2)
    with pytest.raises(MemoryError):
        for step in stream:
            found.append(step.token)
    assert len(found) >= 3
    assert found == expected(request([1, 2], len(found)))
    assert left(model) == (0, 0, 0)


def test_a_model_called_from_its_own_step_says_so() -> None:
    turns = Turns()
    with pytest.raises(RunError, match="within its own step"):
        turns.call(lambda: turns.call(lambda: None))
    assert turns.call(lambda: 3) == 3


def test_jobs_run_one_at_a_time_and_none_is_lost() -> None:
    turns = Turns()
    inside, most, count = [0], [0], [0]

    def job() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(1e-5)
        count[0] += 1
        inside[0] -= 1

    def post() -> None:
        for _ in range(100):
            turns.post(job)
            turns.call(job)

    in_threads(*[post] * 4)
    assert (most[0], count[0]) == (1, 800)
