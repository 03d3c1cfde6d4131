"""Benchmarks by name, imported when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from cluster.bench.case import Benchmark

BENCHMARKS: Mapping[str, tuple[str, ...]] = {
    "dataplane": (
        "dataplane_local:dataplane_local",
        "dataplane_remote:dataplane_remote",
        "dataplane_mooncake:dataplane_mooncake",
        "dataplane_redis:dataplane_redis",
    ),
    "ops": ("ops:ops",),
    "disk": ("disk:disk",),
    "evict": ("evict:evict",),
    "codecs": ("codecs:codecs",),
    "index": (
        "index_dynamo:index_dynamo",
        "index_memory:index_memory",
        "index_decision:index_decision",
        "index_recovery:index_recovery",
        "index_route:index_route",
    ),
    "simulator": ("simulator:simulator",),
    "engine": (
        "engine_decode:engine_decode",
        "engine_vllm:engine_vllm",
        "engine_ttft:engine_ttft",
        "engine_publish:engine_publish",
        "engine_itl:engine_itl",
        "engine_idle:engine_idle",
        "engine_cuda_copies:engine_cuda_copies",
        "engine_cuda_decode:engine_cuda_decode",
    ),
}
"""Name → "module:function" in this package, in the order in which they run."""


def load_benchmarks(name: str) -> list[Benchmark]:
    benchmarks = []
    for place in BENCHMARKS[name]:
        module, function = place.split(":")
        benchmarks.append(
            cast(Benchmark, getattr(import_module(f"cluster.bench.{module}"), function))
        )
    return benchmarks
