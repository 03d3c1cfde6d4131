"""The metrics of serving, declared once. Names follow OpenTelemetry's conventions for generative AI
where it has one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class ServingMetrics:
    """One set of metrics in a registry of its own, so that two servers in one process do not mix.

    The label `model` takes only names of models that are served, so the number of series is
    bounded. Thread-safe.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kvstore_gateway_requests",
            "HTTP requests answered.",
            ["route", "status"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "kvstore_gateway_in_flight",
            "Prompts being generated.",
            registry=self.registry,
        )
        self.ttft_s = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            ["model"],
            buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )
        self.itl_s = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between two output tokens of one request.",
            ["model"],
            buckets=_ITL_BUCKETS_S,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "kvstore_gateway_prompt_tokens",
            "Prompt tokens of requests that got a first token.",
            ["model"],
            registry=self.registry,
        )
        self.hit_tokens = Counter(
            "kvstore_gateway_hit_tokens",
            "Prompt tokens that were loaded instead of computed, by the tier they came from.",
            ["model", "tier"],
            registry=self.registry,
        )
