import threading
from pathlib import Path

import pytest

from kvstore.eviction.lru import LRU
from kvstore.testing.tier_conformance import load_one, numbered_block, numbered_key
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.prefault import Prefaulter, populate_at
from kvstore.tiers.host.tier import HostTier

MIB = 1 << 20


class Recorder:
    """Notes what is populated; wakes whoever waits for a total."""

    def __init__(self, works: bool = True) -> None:
        self.works = works
        self.calls: list[tuple[int, int]] = []
        self._changed = threading.Condition()

    def __call__(self, offset: int, length_bytes: int) -> bool:
        with self._changed:
            self.calls.append((offset, length_bytes))
            self._changed.notify_all()
        return self.works

    def wait_for(self, end: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.end >= end, timeout=30), self.calls

    @property
    def end(self) -> int:
        return sum(self.calls[-1]) if self.calls else 0


def test_memory_is_supplied_in_steps_up_to_a_bound_ahead_of_the_front() -> None:
    recorder = Recorder()
    prefaulter = Prefaulter(recorder, 100 * MIB, ahead_bytes=10 * MIB)
    recorder.wait_for(10 * MIB)
    prefaulter.reach(5 * MIB)
    prefaulter.reach(3 * MIB)
    recorder.wait_for(15 * MIB)
    prefaulter.close()
    assert recorder.end == 15 * MIB, "no more than asked for"
    assert max(length for _, length in recorder.calls) <= 4 * MIB
    ends = [0, *(offset + length for offset, length in recorder.calls)]
    assert [offset for offset, _ in recorder.calls] == ends[:-1], "no gap, nothing twice"


def test_it_ends_at_the_end_of_the_arena() -> None:
    recorder = Recorder()
    prefaulter = Prefaulter(recorder, 6 * MIB, ahead_bytes=64 * MIB)
    recorder.wait_for(6 * MIB)
    prefaulter.reach(6 * MIB)
    prefaulter.close()
    assert recorder.end == 6 * MIB


def test_a_kernel_that_cannot_is_asked_once() -> None:
    recorder = Recorder(works=False)
    prefaulter = Prefaulter(recorder, 100 * MIB, ahead_bytes=10 * MIB)
    recorder.wait_for(1)
    prefaulter.reach(50 * MIB)
    prefaulter.close()
    prefaulter.close()
    assert len(recorder.calls) == 1
    assert prefaulter.supplied_bytes == 0


def test_closing_waits_for_one_step_only() -> None:
    started, go_on = threading.Event(), threading.Event()
    calls = 0

    def slow(offset: int, length_bytes: int) -> bool:
        nonlocal calls
        calls += 1
        started.set()
        return go_on.wait(30)

    prefaulter = Prefaulter(slow, 1 << 40, ahead_bytes=1 << 40)
    assert started.wait(30)
    closing = threading.Thread(target=prefaulter.close)
    closing.start()
    while not prefaulter._closed:
        pass
    go_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert calls == 1


def test_an_arena_commits_a_window_and_no_more(tmp_path: Path) -> None:
    probe = Arena(tmp_path, MIB)
    can = probe.populate(0, MIB)
    probe.close()
    if not can:
        pytest.skip("this kernel cannot populate memory")
    arena = Arena(tmp_path, 256 * MIB)
    tier = HostTier(arena, LRU(), slab_bytes=16 * MIB)
    _wait_until(tier, 16 * MIB)
    assert arena.path.stat().st_blocks * 512 <= 18 * MIB
    block = numbered_block(1, 5000)
    tier.store([block])
    _wait_until(tier, 32 * MIB)
    assert 32 * MIB <= arena.path.stat().st_blocks * 512 <= 34 * MIB
    assert load_one(tier, block) == (None, bytes(block.data)), "bytes that are there stay"
    tier.close()
    assert list(tmp_path.iterdir()) == []


def _wait_until(tier: HostTier, supplied_bytes: int) -> None:
    for _ in range(3000):
        if tier._prefaulter.supplied_bytes >= supplied_bytes:
            return
        threading.Event().wait(0.01)
    raise AssertionError(tier._prefaulter.supplied_bytes)


def test_memory_that_is_not_mapped_is_no_crash() -> None:
    assert populate_at(0)(0, 4096) is False


def test_populated_memory_keeps_its_bytes(tmp_path: Path) -> None:
    arena = Arena(tmp_path, MIB)
    arena.view(arena.data_offset, 5)[:] = b"bytes"
    arena.populate(0, MIB)
    assert bytes(arena.view(arena.data_offset, 5)) == b"bytes"
    arena.close()


def test_many_tiers_come_and_go(tmp_path: Path) -> None:
    for number in range(20):
        tier = HostTier(Arena(tmp_path, 8 * MIB), LRU())
        tier.reserve([numbered_key(number)], 4096)
        tier.close()
    assert not [t for t in threading.enumerate() if t.name == "kvstore-prefault"]
