"""Measuring two things on a shared, noisy machine: in turns, and the best of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

ROUNDS = 7


def best_rates(
    amount: float, works: Mapping[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, float]:
    """`amount` per second of each work, by its name: the best of `rounds`.

    Rounds go through all works in turn, so that a slow spell of the machine meets all of them; the
    first round warms up and does not count.
    """
    best = dict.fromkeys(works, float("inf"))
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = seconds_of(work)
            if number:
                best[name] = min(best[name], seconds)
    return {name: amount / seconds for name, seconds in best.items()}


def seconds_of(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s
