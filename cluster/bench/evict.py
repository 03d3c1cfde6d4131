"""`kvstore bench evict`: token hit rate of eviction policies on a recorded workload."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from cluster.bench.case import BenchOptions, Case
from cluster.demo.trace import TRACE_BLOCK_TOKENS, read_trace
from kvstore.core.errors import ConfigurationError
from kvstore.eviction.registry import POLICIES
from kvstore.eviction.replay import Access, Belady, MakePolicy, replay

CAPACITIES_TOKENS = (3_000_000, 10_000_000)
ORACLE = "belady"


def evict(options: BenchOptions) -> Iterator[Case]:
    """Every policy at every capacity. The ceiling is the clairvoyant bound.

    Raises ConfigurationError: no trace, an unknown policy, a capacity below one block.
    """
    if options.trace is None:
        raise ConfigurationError("evict needs a workload: --trace FILE, in the Mooncake format")
    policies = options.policies or [*POLICIES, ORACLE]
    if unknown := set(policies) - {*POLICIES, ORACLE}:
        raise ConfigurationError(
            f"--policy {min(unknown)}: accepted are {', '.join([*POLICIES, ORACLE])}"
        )
    capacities = options.capacities_tokens or CAPACITIES_TOKENS
    if min(capacities) < TRACE_BLOCK_TOKENS:
        raise ConfigurationError(
            f"--capacity-tokens {min(capacities)}: at least one block, {TRACE_BLOCK_TOKENS} tokens"
        )
    accesses = [
        Access(request.timestamp_ms / 1000, request.input_length, request.hash_ids)
        for request in read_trace(options.trace, sys.maxsize)
    ]
    for tokens in capacities:
        oracle = _hit_rate(accesses, lambda clock: Belady(accesses), tokens)
        for name in policies:
            rate = oracle if name == ORACLE else _hit_rate(accesses, POLICIES[name], tokens)  # type: ignore[index]
            yield Case(
                f"{name}_{tokens}", rate, "of tokens", oracle, "Belady, who knows the future"
            )


def _hit_rate(accesses: list[Access], make: MakePolicy, tokens: int) -> float:
    rate = replay(
        accesses,
        make,
        capacity_blocks=tokens // TRACE_BLOCK_TOKENS,
        block_tokens=TRACE_BLOCK_TOKENS,
    )
    return rate.ratio
