"""The device tier: the engine's own paged KV cache, as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.core.errors import ResourceExhaustedError
from kvstore.core.layout import KVLayout
from kvstore.tiers.device.copying import BlockCopier, DirectCopier, LayerSpan, StagedCopier

_STAGING_BYTES = 64 << 20
"""Pinned memory of a CUDA cache: large enough that a copy is bandwidth, not latency."""


class DeviceCache:
    """KV memory of `num_blocks` blocks on one torch device; which block is whose, `BlockPool` says.

    The tensor is block-major, `[block][layer][k|v][kv_head][token][head_dim]`, so that a block is
    one contiguous copy in either direction and a layer is a strided view. Its memory is not
    cleared: a block is meaningful only where it was written.

    Ownership: owns the memory for its whole life. Threads: forward passes belong to one thread;
    exports and imports may run in others, for blocks or layers that no one writes meanwhile.
    Raises ResourceExhaustedError if the device has too little memory.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device | str) -> None:
        assert num_blocks >= 1
        self.layout = layout
        self.num_blocks = num_blocks
        self.device = torch.device(device)
        self.tensor = _allocate(layout, num_blocks, self.device)
        self._copier = self._make_copier()

    def _make_copier(self) -> BlockCopier:
        if self.device.type == "cpu":
            return DirectCopier(self.tensor)
        staged_blocks = max(2, min(self.num_blocks, _STAGING_BYTES // self.layout.block_bytes))
        staging = torch.empty(
            (staged_blocks, *self.layout.shape), dtype=self.tensor.dtype, pin_memory=True
        )
        return StagedCopier(self.tensor, staging)

    def layer(self, index: int) -> torch.Tensor:
        """K and V of one layer, `[block, k|v, kv_head, token, head_dim]`: a strided view."""
        return self.tensor[:, index]

    def export_blocks(self, block_ids: Sequence[int], into: Sequence[memoryview]) -> None:
        """Copy blocks out; `into[i]` is writable and takes `layout.block_bytes`, or more."""
        self.export_layers(block_ids, self._all_layers, into)

    def export_layers(
        self,
        block_ids: Sequence[int],
        layers: LayerSpan,
        into: Sequence[memoryview],
        after: torch.cuda.Event | None = None,
    ) -> None:
        """Copy layers of blocks out, to their places in `into[i]`, which takes a whole block.

        They are taken as they are when the device has done what the calling thread has queued on
        it; with `after`, a `mark` of the thread that computes, when it has done what came before.
        """
        self._check(block_ids, layers, into)
        self._copier.export_layers(block_ids, layers, into, after)

    def import_blocks(self, block_ids: Sequence[int], from_: Sequence[memoryview]) -> None:
        """Copy blocks in; the first `layout.block_bytes` of `from_[i]` are block `block_ids[i]`."""
        self.import_layers(block_ids, self._all_layers, from_)

    def import_layers(
        self, block_ids: Sequence[int], layers: LayerSpan, from_: Sequence[memoryview]
    ) -> None:
        """Copy layers of blocks in, from their places in `from_[i]`, which has a whole block."""
        self._check(block_ids, layers, from_)
        self._copier.import_layers(block_ids, layers, from_)

    def mark(self) -> torch.cuda.Event | None:
        """What the calling thread has queued on the device by now, for `export_layers`; None where
        all is done when it is asked for. Costs a few microseconds."""
        if self.device.type == "cpu":
            return None
        event: torch.cuda.Event = torch.cuda.current_stream(self.device).record_event()
        return event

    @property
    def _all_layers(self) -> LayerSpan:
        return LayerSpan(0, self.layout.num_layers)

    def _check(
        self, block_ids: Sequence[int], layers: LayerSpan, buffers: Sequence[memoryview]
    ) -> None:
        assert len(block_ids) == len(buffers)
        assert 0 <= layers.first < layers.last <= self.layout.num_layers
        assert all(0 <= block < self.num_blocks for block in block_ids)
        assert all(buffer.nbytes >= self.layout.block_bytes for buffer in buffers)

    def __repr__(self) -> str:
        size = self.num_blocks * self.layout.block_bytes
        return f"DeviceCache({self.num_blocks} blocks, {size} bytes, {self.device})"


def _allocate(layout: KVLayout, num_blocks: int, device: torch.device) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, layout.dtype)
    try:
        return torch.empty((num_blocks, *layout.shape), dtype=dtype, device=device)
    except (MemoryError, RuntimeError) as error:  # torch: RuntimeError on CPU, a subclass on CUDA
        raise ResourceExhaustedError(
            f"device_blocks={num_blocks} needs {num_blocks * layout.block_bytes} bytes on "
            f"{device}, more than it has: lower device_blocks"
        ) from error
