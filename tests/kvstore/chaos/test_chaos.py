"""Processes killed at random points; `make chaos` does many more runs of the same."""

from __future__ import annotations

import pytest

from kvstore.testing import chaos


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_process_leaves_nothing_behind_and_nothing_wrong(seed):
    outcome = chaos.run(seed)
    assert outcome.problems == []


def test_the_seeds_above_kill_every_kind_of_process():
    assert {chaos.victim_of(seed) for seed in range(12)} == {"writer", "reader", "node"}
