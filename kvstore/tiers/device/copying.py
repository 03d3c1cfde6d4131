"""How blocks travel between a device tensor and buffers of the CPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

_Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LayerSpan:
    """Layers [first, last) of a block. In memory they are one range of bytes."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


class BlockCopier(Protocol):
    """Copies layers of blocks, each to or from its place in a buffer of a whole block; returns when
    the bytes have arrived. Safe to call from several threads, each with bytes of its own."""

    def export_layers(
        self,
        block_ids: Sequence[int],
        layers: LayerSpan,
        into: Sequence[memoryview],
        after: torch.cuda.Event | None = None,
    ) -> None:
        """`after`: wait for this, and not for all that the device has been asked to do."""

    def import_layers(
        self, block_ids: Sequence[int], layers: LayerSpan, from_: Sequence[memoryview]
    ) -> None: ...


class DirectCopier:
    """A tensor in CPU memory: one memcpy a block, with the GIL released."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._rows = _byte_rows(tensor)
        self._layer_bytes = self._rows.shape[1] // tensor.shape[1]

    def export_layers(
        self,
        block_ids: Sequence[int],
        layers: LayerSpan,
        into: Sequence[memoryview],
        after: torch.cuda.Event | None = None,
    ) -> None:
        part = _bytes_of(layers, self._layer_bytes)
        for block, buffer in zip(block_ids, into, strict=True):
            np.copyto(_byte_row(buffer)[part], self._rows[block][part])

    def import_layers(
        self, block_ids: Sequence[int], layers: LayerSpan, from_: Sequence[memoryview]
    ) -> None:
        part = _bytes_of(layers, self._layer_bytes)
        for block, buffer in zip(block_ids, from_, strict=True):
            np.copyto(self._rows[block][part], _byte_row(buffer)[part])


class StagedCopier:
    """A tensor in GPU memory: blocks pass through pinned `staging`, half of it at a time.

    A part is gathered (or scattered) on the device, so that it crosses the bus as one copy, and the
    CPU copies one half while the bus has the other. All of it runs on a stream of its own: after
    the kernels queued on the caller's stream so far, or after a given event, and beside all others.
    Bound: the staging memory; one batch at a time.
    """

    def __init__(self, tensor: torch.Tensor, staging: torch.Tensor) -> None:
        """`staging` holds two blocks at least."""
        half = len(staging) // 2
        assert half >= 1
        self._tensor = tensor
        self._halves = [_Half(part) for part in (staging[:half], staging[half : 2 * half])]
        self._half_layers = half * tensor.shape[1]
        self._layer_bytes = staging[0, 0].nbytes
        self._stream = torch.cuda.Stream(tensor.device) if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def export_layers(
        self,
        block_ids: Sequence[int],
        layers: LayerSpan,
        into: Sequence[memoryview],
        after: torch.cuda.Event | None = None,
    ) -> None:
        place = _bytes_of(layers, self._layer_bytes)
        source = self._tensor[:, layers.first : layers.last]
        with self._lock, self._own_stream(after):
            on_the_bus: deque[tuple[_Half, Sequence[memoryview]]] = deque()
            for half, part in self._parts(len(block_ids), len(layers)):
                if len(on_the_bus) == len(self._halves):
                    _hand_out(*on_the_bus.popleft(), place)
                ids = self._ids(block_ids[part])
                half.take(len(ids), len(layers))
                half.memory.copy_(source.index_select(0, ids), non_blocking=True)
                half.mark(self._stream)
                on_the_bus.append((half, into[part]))
            while on_the_bus:
                _hand_out(*on_the_bus.popleft(), place)

    def import_layers(
        self, block_ids: Sequence[int], layers: LayerSpan, from_: Sequence[memoryview]
    ) -> None:
        place = _bytes_of(layers, self._layer_bytes)
        target = self._tensor[:, layers.first : layers.last]
        with self._lock, self._own_stream(None):
            for half, part in self._parts(len(block_ids), len(layers)):
                half.wait()
                ids = self._ids(block_ids[part])
                half.take(len(ids), len(layers))
                for row, buffer in zip(half.rows, from_[part], strict=True):
                    np.copyto(row, _byte_row(buffer)[place])
                arrived = half.memory.to(self._tensor.device, non_blocking=True)
                target.index_copy_(0, ids, arrived)
                half.mark(self._stream)
            for half in self._halves:
                half.wait()

    @contextmanager
    def _own_stream(self, after: torch.cuda.Event | None) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        if after is None:
            self._stream.wait_stream(torch.cuda.current_stream(self._tensor.device))
        else:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            yield

    def _parts(self, num_blocks: int, num_layers: int) -> Iterator[tuple[_Half, slice]]:
        step = self._half_layers // num_layers
        slices = (slice(start, start + step) for start in range(0, num_blocks, step))
        return zip(cycle(self._halves), slices, strict=False)

    def _ids(self, block_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(block_ids, device=self._tensor.device)


class _Half:
    """Half of the staging memory, what is in it, and whether the device is done with it."""

    def __init__(self, staging: torch.Tensor) -> None:
        """`[block, layer, ...]`."""
        self._layers = staging.flatten(0, 1)
        self._done: torch.cuda.Event | None = None
        self.take(len(staging), staging.shape[1])

    def take(self, num_blocks: int, num_layers: int) -> None:
        """Use it for so many layers of so many blocks."""
        used = self._layers[: num_blocks * num_layers]
        self.memory = used.view(num_blocks, num_layers, *used.shape[1:])
        self.rows = _byte_rows(self.memory)

    def mark(self, stream: torch.cuda.Stream | None) -> None:
        """The device is done with it when it is done with all that is queued now."""
        if stream is not None:
            self._done = stream.record_event()

    def wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()


def _hand_out(half: _Half, into: Sequence[memoryview], place: slice) -> None:
    half.wait()
    for row, buffer in zip(half.rows, into, strict=True):
        np.copyto(_byte_row(buffer)[place], row)


def _bytes_of(layers: LayerSpan, layer_bytes: int) -> slice:
    return slice(layers.first * layer_bytes, layers.last * layer_bytes)


def _byte_rows(tensor: torch.Tensor) -> _Bytes:
    """`[block, byte]` view of a contiguous CPU tensor of any dtype."""
    assert tensor.is_contiguous()
    rows: _Bytes = tensor.view(len(tensor), -1).view(torch.uint8).numpy()
    return rows


def _byte_row(buffer: memoryview) -> _Bytes:
    """To copy by numpy: `copyto` releases the GIL, a memoryview would not."""
    return np.frombuffer(buffer, np.uint8)
