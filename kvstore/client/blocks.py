"""Blocks in a caller's hands: being written, being read, or known of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy.typing as npt

from kvstore.client.arrays import as_numpy, as_torch
from kvstore.core.ids import NodeId
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import TierKind

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Longest prefix present: `tiers[i]` is the fastest tier of the i-th key, for the leading keys
    that are there."""

    tiers: Sequence[TierKind]
    nodes: Mapping[int, NodeId] = field(default_factory=dict)
    """Index of each REMOTE block → the node that it would be pulled from."""

    def __len__(self) -> int:
        return len(self.tiers)


@dataclass(frozen=True, slots=True)
class Prefetched:
    """What became of a prefetch: blocks that are in the host tier, and blocks on their way there.
    The rest is nowhere, or found no room."""

    num_resident: int
    num_started: int


@dataclass(frozen=True, slots=True)
class ReservedBlock:
    """A block to write. `view` is writable memory of the arena (or a private buffer, on another
    host)."""

    index: int
    """Which of the keys asked for."""
    view: memoryview

    def numpy(self, layout: KVLayout) -> npt.NDArray[Any]:
        """Writable `[layer, 2, kv_head, token, head_dim]` over the same memory. Not to be used
        after commit or abort: the memory will be another block's. Raises InvalidArgumentError."""
        return as_numpy(self.view, layout)

    def torch(self, layout: KVLayout) -> torch.Tensor:
        """The same as a CPU tensor. Raises InvalidArgumentError."""
        return as_torch(self.view, layout)


class FoundBlock(NamedTuple):
    """A block under lease. A named tuple, for there is one for each block of every batch read."""

    index: int  # type: ignore[assignment]
    """Which of the keys asked for; hides the method of tuples."""
    tier: TierKind
    """Where it was found; it is in host memory now."""
    view: memoryview
    """Read-only. Trust it only if `Lease.verify` passes after you used it; `copy_into` does that
    for you."""
    checksum: int
    generation: int
    pending: bool = False
    """Being written: see `Lease.wait_layers`."""

    def numpy(self, layout: KVLayout) -> npt.NDArray[Any]:
        """Read-only `[layer, 2, kv_head, token, head_dim]` over the same memory, to be trusted as
        `view` is. Raises InvalidArgumentError."""
        return as_numpy(self.view, layout)

    def torch(self, layout: KVLayout) -> torch.Tensor:
        """The same as a CPU tensor; torch knows no read-only ones, so do not write to it. Raises
        InvalidArgumentError."""
        return as_torch(self.view, layout)
