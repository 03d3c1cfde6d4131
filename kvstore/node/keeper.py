"""What becomes of blocks that are here: pinned, retained, removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvstore.core.ids import BlockKeys, SessionId
from kvstore.node.pins import Pins
from kvstore.node.reading import Leases
from kvstore.node.removal import Removal
from kvstore.node.replicas import Replicas
from kvstore.node.retention import RetentionRange
from kvstore.node.sessions import Session
from kvstore.node.tenants import Tenants
from kvstore.tiers.base import MissReason


class Keeper:
    """Verbs over the blocks of the session's tenant, whichever session wrote them. Owned by the
    node's event loop. `session` finds a session that may do so, and keeps it alive."""

    def __init__(
        self,
        session: Callable[[SessionId], Session],
        replicas: Replicas,
        leases: Leases,
        pins: Pins,
        removal: Removal,
        tenants: Tenants,
    ) -> None:
        self._session = session
        self._replicas = replicas
        self._leases = leases
        self._pins = pins
        self._removal = removal
        self._tenants = tenants

    async def pin(
        self, session_id: SessionId, keys: BlockKeys, ttl_s: float | None, wait_s: float
    ) -> list[MissReason | None]:
        """Keep blocks in the host tier, for a time or (None) until they are unpinned, bringing them
        up first as `acquire` does. Why not, for each key that is not pinned."""
        session = self._session(session_id)
        acquired = await self._leases.acquire(session, list(keys), wait_s)
        try:
            found = iter(self._pins.pin(acquired.lease.keys, ttl_s))
            return [
                tier if isinstance(tier, MissReason) else next(found) for tier in acquired.tiers
            ]
        finally:
            self._leases.release(session, [acquired.lease.id])

    def unpin(self, session_id: SessionId, keys: BlockKeys) -> int:
        self._session(session_id)
        return self._pins.unpin(keys)

    def retain(
        self, session_id: SessionId, keys: BlockKeys, ranges: Sequence[RetentionRange]
    ) -> int:
        """Returns how many of the blocks were in the host tier, where retention means something."""
        self._session(session_id)
        host, chain = self._replicas.host, list(keys)
        num_retained = 0
        for part in ranges:
            here = host.retain(chain[part.first : part.last], part.priority, part.duration_s)
            num_retained += len(here)
        # All that is here of the chain: what comes before a retained block stays as long.
        host.touch([key for key in chain if key in host])
        return num_retained

    async def remove(self, session_id: SessionId, keys: BlockKeys) -> int:
        self._session(session_id)
        return await self._removal.remove(list(keys))

    async def clear(self, session_id: SessionId) -> int:
        """All blocks of the tenant, of layouts that it has used since the node began."""
        session = self._session(session_id)
        return await self._removal.clear(self._tenants.layouts(session.tenant))
