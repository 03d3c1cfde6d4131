"""How hot replicas are, on a manual clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.node.pull.heat import COLD_HEAT, HALF_LIFE_S, ReplicaHeat
from kvstore.testing.clock import ManualClock

from .conftest import make_keys

A, B, C = make_keys("a", "b", "c")


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def heat(clock):
    return ReplicaHeat(clock)


def test_the_coldest_leave_first(heat, clock):
    for key in (A, B, C):
        heat.add(key, 10)
        clock.advance(1)
    heat.read([A])
    assert heat.coldest(20) == [B, C]
    heat.put_back([B, C])
    assert heat.coldest(11) == [B, C]
    heat.put_back([B, C])
    assert heat.coldest(1) == [B]
    assert heat.coldest(1) == [C], "each comes once until it is put back"


def test_heat_decays_so_that_an_old_crowd_pleaser_is_colder_than_a_new_block(heat, clock):
    heat.add(A, 10)
    for _ in range(30):
        heat.read([A])
    heat.add(B, 10)
    assert heat.coldest(1) == [B]
    heat.forget([B])
    clock.advance(HALF_LIFE_S * 6)
    heat.add(B, 10)
    assert heat.coldest(1) == [A]


def test_a_block_that_nobody_reads_again_is_cold_after_three_half_lives(heat, clock):
    assert COLD_HEAT == 0.25, "as the next lines compute"
    heat.add(A, 10)
    heat.read([A])
    heat.add(B, 10)
    for _ in range(7):
        heat.read([B])
    clock.advance(HALF_LIFE_S * 2.99)
    assert heat.cold() == []
    clock.advance(HALF_LIFE_S * 0.02)
    assert heat.cold() == [A]
    clock.advance(HALF_LIFE_S * 1.98)
    assert heat.cold() == []
    clock.advance(HALF_LIFE_S * 0.02)
    assert heat.cold() == [B]


def test_a_second_read_makes_hot_once(heat):
    heat.add(A, 10)
    assert heat.read([A, B]) == []
    assert heat.read([A, B]) == [A]
    assert heat.read([A, B]) == []


def test_what_leaves_is_forgotten(heat):
    heat.add(A, 10)
    heat.add(B, 20)
    heat.forget([A, C])
    assert (heat.used_bytes, len(heat), A in heat, B in heat) == (20, 1, False, True)
    heat.add(A, 5)
    assert sorted(heat.coldest(100)) == sorted([A, B])
    heat.clear()
    assert (heat.used_bytes, heat.coldest(1)) == (0, [])


@given(st.lists(st.tuples(st.sampled_from("arfct"), st.integers(0, 4)), max_size=80))
def test_the_heap_agrees_with_sorting_everything(steps):
    clock = ManualClock()
    heat = ReplicaHeat(clock)
    keys = list(make_keys(*range(5)))
    model = {}
    for verb, number in steps:
        key = keys[number]
        match verb:
            case "a" if key not in model:
                heat.add(key, 10)
                model[key] = (1.0, clock())
            case "r":
                heat.read([key])
                if key in model:
                    value, at = model[key]
                    model[key] = (value * 0.5 ** ((clock() - at) / HALF_LIFE_S) + 1, clock())
            case "f":
                heat.forget([key])
                model.pop(key, None)
            case "c" if model:
                taken = heat.coldest(10 * number or 1)
                assert len(taken) == len(set(taken)) == min(max(number, 1), len(model))
                now = {k: v * 0.5 ** ((clock() - at) / HALF_LIFE_S) for k, (v, at) in model.items()}
                rest = [now[k] for k in now if k not in taken]
                assert max(now[k] for k in taken) <= min(rest, default=1e9) * (1 + 1e-9)
                heat.put_back(taken)
            case "t":
                clock.advance(number * 7)
    assert heat.used_bytes == 10 * len(model)
