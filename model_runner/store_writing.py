"""From the device tier into reserved memory of the store, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch

from kvstore.client.sync import SyncReservation
from kvstore.core.ids import BlockHash
from kvstore.tiers.device.cache import DeviceCache
from kvstore.tiers.device.copying import LayerSpan
from model_runner.kv_groups import KVGroup


class LayerWriting:
    """Those blocks of one KV group that the store lacks. Owned by one thread; leaving the context
    gives up what is not committed. Raises what the reservation raises."""

    def __init__(
        self,
        group: KVGroup,
        cache: DeviceCache,
        reservation: SyncReservation,
        hashes: Sequence[BlockHash],
        block_ids: Sequence[int],
    ) -> None:
        self._group = group
        self._cache = cache
        self._reservation = reservation
        self._hashes = hashes
        self._blocks = reservation.blocks
        self._block_ids = [block_ids[block.index] for block in self._blocks]
        self._num_copied = 0

    def copy(self, computed: Set[int], mark: torch.cuda.Event | None) -> None:
        """The leading layers that are among those of the model that are computed."""
        layers = self._group.layers
        ready = next((n for n, layer in enumerate(layers) if layer not in computed), len(layers))
        self._copy_up_to(ready, mark)

    def copy_rest(self, mark: torch.cuda.Event | None) -> None:
        self._copy_up_to(len(self._group.layers), mark)

    def commit(self, without: Set[BlockHash]) -> int:
        good = [block for block in self._blocks if self._hashes[block.index] not in without]
        if good:
            self._reservation.commit(good)
        return len(good)

    def _copy_up_to(self, ready: int, mark: torch.cuda.Event | None) -> None:
        if ready > self._num_copied and self._blocks:
            span = LayerSpan(self._num_copied, ready)
            views = [block.view for block in self._blocks]
            self._cache.export_layers(self._block_ids, span, views, mark)
            self._reservation.layers_ready(ready)
            self._num_copied = ready

    def __enter__(self) -> LayerWriting:
        return self

    def __exit__(self, *exc: object) -> None:
        self._reservation.abort()
