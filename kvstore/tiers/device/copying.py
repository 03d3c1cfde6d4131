"""How blocks travel between a device tensor and buffers of the CPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

_Bytes: TypeAlias = npt.NDArray[np.uint8]


class BlockCopier(Protocol):
    """Copies whole blocks; returns when the bytes have arrived. Safe to call from several
    threads, each with blocks and buffers of its own."""

    def export_blocks(self, block_ids: Sequence[int], into: Sequence[memoryview]) -> None: ...

    def import_blocks(self, block_ids: Sequence[int], from_: Sequence[memoryview]) -> None: ...


class DirectCopier:
    """A tensor in CPU memory: one memcpy a block, with the GIL released."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._rows = _byte_rows(tensor)

    def export_blocks(self, block_ids: Sequence[int], into: Sequence[memoryview]) -> None:
        for block, buffer in zip(block_ids, into, strict=True):
            _copy(self._rows[block], _byte_row(buffer))

    def import_blocks(self, block_ids: Sequence[int], from_: Sequence[memoryview]) -> None:
        for block, buffer in zip(block_ids, from_, strict=True):
            _copy(_byte_row(buffer), self._rows[block])


class StagedCopier:
    """A tensor in GPU memory: blocks pass through pinned `staging`, half of it at a time.

    A part is gathered (or scattered) on the device, so that it crosses the bus as one copy, and the
    CPU copies one half while the bus has the other. All of it runs on a stream of its own, after
    the kernels queued on the caller's stream so far and beside those queued later. Bound: the
    staging memory; one batch at a time.
    """

    def __init__(self, tensor: torch.Tensor, staging: torch.Tensor) -> None:
        """`staging` holds two blocks at least."""
        half = len(staging) // 2
        assert half >= 1
        self._tensor = tensor
        self._halves = [_Half(part) for part in (staging[:half], staging[half : 2 * half])]
        self._part_blocks = half
        self._stream = torch.cuda.Stream(tensor.device) if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def export_blocks(self, block_ids: Sequence[int], into: Sequence[memoryview]) -> None:
        with self._lock, self._own_stream():
            on_the_bus: deque[tuple[_Half, Sequence[memoryview]]] = deque()
            for half, part in self._parts(len(block_ids)):
                if len(on_the_bus) == len(self._halves):
                    _hand_out(*on_the_bus.popleft())
                ids = self._ids(block_ids[part])
                half.memory[: len(ids)].copy_(self._tensor.index_select(0, ids), non_blocking=True)
                half.mark(self._stream)
                on_the_bus.append((half, into[part]))
            while on_the_bus:
                _hand_out(*on_the_bus.popleft())

    def import_blocks(self, block_ids: Sequence[int], from_: Sequence[memoryview]) -> None:
        with self._lock, self._own_stream():
            for half, part in self._parts(len(block_ids)):
                half.wait()
                for row, buffer in zip(half.rows, from_[part], strict=False):
                    _copy(_byte_row(buffer), row)
                ids = self._ids(block_ids[part])
                arrived = half.memory[: len(ids)].to(self._tensor.device, non_blocking=True)
                self._tensor.index_copy_(0, ids, arrived)
                half.mark(self._stream)
            for half in self._halves:
                half.wait()

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._tensor.device))
        with torch.cuda.stream(self._stream):
            yield

    def _parts(self, count: int) -> Iterator[tuple[_Half, slice]]:
        step = self._part_blocks
        slices = (slice(start, start + step) for start in range(0, count, step))
        return zip(cycle(self._halves), slices, strict=False)

    def _ids(self, block_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(block_ids, device=self._tensor.device)


class _Half:
    """Half of the staging memory, and whether the device is done with it."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory
        self.rows = _byte_rows(memory)
        self._done: torch.cuda.Event | None = None

    def mark(self, stream: torch.cuda.Stream | None) -> None:
        """The device is done with it when it is done with all that is queued now."""
        if stream is not None:
            self._done = stream.record_event()

    def wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()


def _hand_out(half: _Half, into: Sequence[memoryview]) -> None:
    half.wait()
    for row, buffer in zip(half.rows, into, strict=False):
        _copy(row, _byte_row(buffer))


def _byte_rows(tensor: torch.Tensor) -> _Bytes:
    """`[block, byte]` view of a contiguous CPU tensor of any dtype."""
    assert tensor.is_contiguous()
    rows: _Bytes = tensor.view(len(tensor), -1).view(torch.uint8).numpy()
    return rows


def _byte_row(buffer: memoryview) -> _Bytes:
    return np.frombuffer(buffer, np.uint8)


def _copy(source: _Bytes, target: _Bytes) -> None:
    """As many bytes as the shorter one has. `copyto` releases the GIL, a memoryview would not."""
    length = min(len(source), len(target))
    np.copyto(target[:length], source[:length])
