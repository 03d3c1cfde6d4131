"""What a worker tells Prometheus. Everything is read when it is asked for: serving pays nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from model_runner.engine import Engine
from model_runner.load_or_compute import LoadPlanner, PlannerStatistics
from model_runner.step_meter import STEP_BUCKETS_S, StepStatistics
from model_runner.store_node import NodeStore, StoreStatistics

_PREFIX = "kvstore_worker_"


@dataclass(frozen=True, slots=True)
class WorkerCollector(Collector):
    """Reads an engine and what belongs to it. Thread-safe, as they are."""

    model: str
    engine: Engine
    planner: LoadPlanner
    store: NodeStore | None
    """None without a node."""

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._steps(self.engine.statistics().steps)
        yield from self._planner(self.planner.statistics(time.monotonic()))
        if self.store is not None:
            yield from self._store(self.store.statistics())

    def _requests(self) -> Iterator[Metric]:
        load, counts = self.engine.load(), self.engine.statistics()
        yield self._gauge("running_requests", "Admitted: loading or computed.", load.running)
        yield self._gauge("waiting_requests", "Not admitted yet.", load.waiting)
        yield self._gauge("waiting_tokens", "Not computed yet.", load.waiting_tokens)
        yield self._gauge("free_blocks", "Of the device tier.", load.free_blocks)
        yield self._gauge("total_blocks", "Of the device tier.", load.total_blocks)
        yield self._count(
            "preemptions", "Requests that gave their blocks to others.", counts.preemptions
        )
        yield self._count(
            "demoted_blocks", "Of preempted requests, to the store.", counts.demoted_blocks
        )
        yield self._count(
            "loaded_back_blocks", "For requests once preempted.", counts.loaded_back_blocks
        )

    def _steps(self, steps: StepStatistics) -> Iterator[Metric]:
        yield self._count("computed_tokens", "In all steps.", steps.computed_tokens)
        yield self._counts(
            "hit_tokens",
            "Prompt tokens that were not computed.",
            "tier",
            {tier.name.lower(): count for tier, count in steps.hit_tokens.items()},
        )
        family = HistogramMetricFamily(
            _PREFIX + "step_seconds", "Of a step of the model.", labels=["model"]
        )
        bounds = [*map(str, STEP_BUCKETS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(steps.steps_by_s), strict=True))
        family.add_metric([self.model], buckets, steps.steps_s)
        yield family

    def _planner(self, planner: PlannerStatistics) -> Iterator[Metric]:
        rates = {tier.name.lower(): rate for tier, rate in planner.rates.items()}
        yield self._counts(
            "recomputed_blocks",
            "In the store, and cheaper to compute.",
            "tier",
            {tier.name.lower(): count for tier, count in planner.recomputed_blocks.items()},
        )
        yield self._gauges(
            "load_latency_seconds",
            "Expected of a load.",
            "tier",
            {tier: rate.latency_s for tier, rate in rates.items()},
        )
        yield self._gauges(
            "load_seconds_per_gigabyte",
            "Expected of a load.",
            "tier",
            {tier: rate.s_per_gb for tier, rate in rates.items()},
        )
        yield self._gauges(
            "compute_seconds",
            "Expected of a step, 1,000 tokens in it, 1,000,000 pairs of tokens that attend.",
            "of",
            dict(zip(("step", "kilotoken", "megapair"), planner.step_s, strict=True)),
        )

    def _store(self, store: StoreStatistics) -> Iterator[Metric]:
        yield self._count("fetched_blocks", "From the store.", store.fetched_blocks)
        yield self._count(
            "missed_blocks", "Not there, not in time, or cheaper to compute.", store.missed_blocks
        )
        yield self._count("published_blocks", "To the store.", store.published_blocks)
        yield self._count(
            "skipped_blocks", "Not published: too many on their way.", store.skipped_blocks
        )
        yield self._counts("store_errors", "By class of error.", "error", store.errors)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, text, labels=["model"])
        family.add_metric([self.model], value)
        return family

    def _gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, text, labels=["model", label])
        for key, value in values.items():
            family.add_metric([self.model, key], value)
        return family

    def _count(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(_PREFIX + name, text, labels=["model"])
        family.add_metric([self.model], value)
        return family

    def _counts(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(_PREFIX + name, text, labels=["model", label])
        for key, value in values.items():
            family.add_metric([self.model, key], value)
        return family
