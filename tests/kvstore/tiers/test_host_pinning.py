import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.pinning import PinnedRegions, cuda_runtime

MIB = 1 << 20
REGION = 64 * MIB


class FakeRuntime:
    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.pinned: dict[int, int] = {}
        self.calls = 0

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        self.calls += 1
        assert pointer not in self.pinned
        if self.status == 0:
            self.pinned[pointer] = size
        return self.status

    def cudaHostUnregister(self, pointer: int) -> int:
        del self.pinned[pointer]
        return 0


def test_regions_are_pinned_once_when_they_are_used() -> None:
    runtime = FakeRuntime()
    pinned = PinnedRegions(runtime, 1 << 30, 100 * MIB)
    assert runtime.pinned == {}
    pinned.use(5, 10)
    pinned.use(0, REGION)
    assert runtime.pinned == {1 << 30: REGION}
    pinned.use(REGION - 1, 2)
    assert runtime.pinned == {1 << 30: REGION, (1 << 30) + REGION: 36 * MIB}
    pinned.close()
    pinned.close()
    assert runtime.pinned == {}
    pinned.use(0, 1)
    assert runtime.pinned == {}, "nothing is pinned that nobody would unpin"


def test_a_refusal_is_taken_once() -> None:
    runtime = FakeRuntime(status=2)
    pinned = PinnedRegions(runtime, 1 << 30, 100 * MIB)
    pinned.use(0, 100 * MIB)
    pinned.use(0, 1)
    assert runtime.calls == 1
    pinned.close()


def test_an_arena_pins_what_a_process_with_cuda_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(tmp_path, 4 * MIB)
    runtime = FakeRuntime()
    cuda = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, cudart=lambda: runtime
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    reader = Arena.attach(arena.path)
    reader.view(reader.data_offset, 10)
    assert len(runtime.pinned) == 1
    reader.close()
    assert runtime.pinned == {}
    arena.close()


def test_without_cuda_nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cuda_runtime() is None
    idle = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=idle))
    assert cuda_runtime() is None, "a process that does not use its GPU does not start to"
