"""Where blocks come from that are not in the host tier: the disk, other nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvstore.core.ids import BlockKey
from kvstore.node.arrivals import Claim
from kvstore.tiers.base import TierKind


class Source(Protocol):
    """Brings blocks into the host tier. Owned by the node's event loop.

    Every block on its way is in the node's one table of `Arrivals`, whichever source brings it, so
    there is at most one of it. Host memory is reserved before a byte moves, the bytes go straight
    into it, and their checksum is verified before the block is visible.
    """

    kind: TierKind
    """What a reader is told: where the block came from."""

    async def claim(self, keys: Sequence[BlockKey], timeout_s: float) -> dict[BlockKey, Claim]:
        """Start those of `keys` that this source has, with a reason for those that cannot come now;
        those that it knows nothing of are left out.

        Called for keys that are neither resident nor on their way. Ends within `timeout_s`, which
        is the reader's time for all; what was started goes on without it.
        """

    def hangs(self) -> bool:
        """Whether it has not answered for so long that nobody should wait for what is on its
        way."""

    async def stop(self) -> None:
        """End what is on its way, in bounded time. Nothing writes into host memory afterwards but
        what a hanging disk may still write into slots that get no other use. Idempotent."""
