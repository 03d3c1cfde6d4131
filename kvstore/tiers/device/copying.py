"""How blocks travel between a device tensor and buffers of the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
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
    """A tensor in GPU memory: blocks pass through pinned `staging`, as many at a time as it holds.

    A batch is gathered (or scattered) on the device, so that it crosses the bus as one copy. The
    copy runs on the calling thread's current stream, after the kernels queued there before.
    """

    def __init__(self, tensor: torch.Tensor, staging: torch.Tensor) -> None:
        self._tensor = tensor
        self._staging = staging
        self._rows = _byte_rows(staging)
        self._lock = threading.Lock()

    def export_blocks(self, block_ids: Sequence[int], into: Sequence[memoryview]) -> None:
        for part in self._parts(len(block_ids)):
            ids = self._ids(block_ids[part])
            with self._lock:
                gathered = self._tensor.index_select(0, ids)
                self._staging[: len(ids)].copy_(gathered, non_blocking=True)
                self._synchronize()
                for row, buffer in zip(self._rows, into[part], strict=False):
                    _copy(row, _byte_row(buffer))

    def import_blocks(self, block_ids: Sequence[int], from_: Sequence[memoryview]) -> None:
        for part in self._parts(len(block_ids)):
            ids = self._ids(block_ids[part])
            with self._lock:
                for row, buffer in zip(self._rows, from_[part], strict=False):
                    _copy(_byte_row(buffer), row)
                arrived = self._staging[: len(ids)].to(self._tensor.device, non_blocking=True)
                self._tensor.index_copy_(0, ids, arrived)
                self._synchronize()

    def _parts(self, count: int) -> Iterator[slice]:
        step = len(self._staging)
        return (slice(start, start + step) for start in range(0, count, step))

    def _ids(self, block_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(block_ids, device=self._tensor.device)

    def _synchronize(self) -> None:
        if self._tensor.is_cuda:
            torch.cuda.current_stream(self._tensor.device).synchronize()


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
