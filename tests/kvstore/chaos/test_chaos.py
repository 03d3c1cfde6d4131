"""Processes killed at random points; `make chaos` does many more runs of the same."""

from __future__ import annotations

import pytest

from kvstore.testing import chaos

SEEDS = range(3 * len(chaos.VICTIMS))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_process_leaves_nothing_behind_and_nothing_wrong(seed):
    outcome = chaos.run(seed)
    assert outcome.problems == []


def test_a_stalled_writer_is_met_in_the_middle_of_writing():
    """Else it would not be seen whether its memory is kept back."""
    stalled = [seed for seed in range(100) if chaos.victim_of(seed) == "stalled writer"]
    assert any(chaos.run(seed).orphaned_blocks for seed in stalled)


def test_the_seeds_above_strike_all_victims():
    assert {chaos.victim_of(seed) for seed in SEEDS} == set(chaos.VICTIMS)
