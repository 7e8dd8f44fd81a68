"""What a server counts, for Prometheus, by the names that vLLM's and llama.cpp's dashboards know, a label a mask.

Masks that have no name, or no longer have one, are counted under one label together, so that the number of series is
bounded by the number of names.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.requests import Running

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_PREFIX = "layercoop:"


class Metrics:
    """Counters and histograms of one server; `text` is the page that Prometheus reads.

    Args:
        model: whose keys, values and drafts are told of.
        under_way: gives how many requests are under way in all.
        replica: what the label `replica` of every series says; "" for no such label.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, model: LayerSkipModel, under_way: Callable[[], int], replica: str = "") -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        label = ["model_name"]

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, [*label, *labels], registry=self._registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(_PREFIX + name, text, label, buckets=_SECONDS, registry=self._registry)

        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._reused = counter("prefix_cache_hits", "Tokens of prompts whose keys and values were there already.")
        self._answer = counter("generation_tokens", "Tokens of answers.")
        self._finished = counter("request_success", "Requests that ended, by why.", "finished_reason")
        self._first = histogram("time_to_first_token_seconds", "From arrival to the first token.")
        self._between = histogram(
            "inter_token_latency_seconds", "From one token to the next; of several at once, each."
        )
        self._open = Gauge(_PREFIX + "num_requests", "Requests that have not ended.", label, registry=self._registry)
        self._registry.register(_OfModel(model, under_way))
        # Requests that have not ended by name, and names that are gone while some of theirs are under way.
        self._under_way: Counts[str] = Counts()
        self._gone: set[str] = set()
        # What every token counts in, by name: `labels` takes longer than counting does.
        self._of_tokens: dict[str, tuple[Counter, Histogram, Histogram]] = {}

    def came(self, model: str, runnings: Sequence[Running]) -> None:
        """Requests began."""
        self._gone.discard(model)
        self._under_way[model] += len(runnings)
        self._open.labels(model).inc(len(runnings))
        self._prompt.labels(model).inc(sum(len(one.request.prompt) for one in runnings))

    def tokens(self, model: str, count: int, seconds: float, *, first: bool) -> None:
        """`count` tokens came, `seconds` after the request or after the ones before."""
        if (found := self._of_tokens.get(model)) is None:
            found = self._answer.labels(model), self._first.labels(model), self._between.labels(model)
            self._of_tokens[model] = found
        answer, to_first, between = found
        answer.inc(count)
        if first:
            to_first.observe(seconds)
        else:
            for _ in range(count):
                between.observe(seconds / count)

    def went(self, model: str, running: Running) -> None:
        """A request ended, or was cancelled."""
        reason = running.finish or ("abort" if running.error is None or "cancelled" in str(running.error) else "error")
        self._open.labels(model).dec()
        self._reused.labels(model).inc(running.reused_tokens)
        self._finished.labels(model, {"eos": "stop"}.get(reason, reason)).inc()
        self._under_way[model] -= 1
        if model in self._gone:
            self.forget(model)

    def forget(self, model: str) -> None:
        """The name of a mask is gone, and its series with it once its last request has ended."""
        if self._under_way[model] > 0:
            self._gone.add(model)
            return
        if model not in self._under_way:
            return
        self._gone.discard(model)
        del self._under_way[model]
        self._of_tokens.pop(model, None)
        for metric in (
            self._prompt,
            self._reused,
            self._answer,
            self._first,
            self._between,
            self._open,
            self._finished,
        ):
            metric.remove_by_labels({"model_name": model})

    def text(self) -> bytes:
        """The page, in Prometheus' text format."""
        return generate_latest(self if self._replica else self._registry)

    def collect(self) -> Iterable[Metric]:
        """Every series, with the label of the replica: the pages of several replicas come from one address."""
        for metric in self._registry.collect():
            for number, sample in enumerate(metric.samples):
                metric.samples[number] = sample._replace(labels={**sample.labels, "replica": self._replica})
            yield metric


class _OfModel:
    """What is read off the model when the page is asked for."""

    def __init__(self, model: LayerSkipModel, under_way: Callable[[], int]) -> None:
        self._model, self._under_way = model, under_way

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        batcher, pool = self._model.batcher, self._model.executor.pool
        running = len(batcher.running)
        yield GaugeMetricFamily(_PREFIX + "num_requests_running", "Requests that are computed.", running)
        waiting = max(0, self._under_way() - running)
        yield GaugeMetricFamily(_PREFIX + "num_requests_waiting", "Requests that wait.", waiting)
        share = pool.used_bytes / pool.budget if pool.budget else 0.0
        yield GaugeMetricFamily(
            _PREFIX + "kv_cache_usage_perc", "Share of the memory for keys and values in use.", share
        )
        drafts = self._model.drafting()
        for name, key in (("draft_tokens", "drafted"), ("accepted_tokens", "accepted")):
            text = f"Tokens that drafts {'proposed' if key == 'drafted' else 'got accepted'}."
            yield CounterMetricFamily(_PREFIX + f"spec_decode_num_{name}", text, drafts[key] or 0)
