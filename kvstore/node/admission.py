"""Host memory for new blocks: within quotas, and rather at the cost of the disk than refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core.errors import QuotaExceededError
from kvstore.core.ids import BlockKey
from kvstore.node.demotion import Demotion
from kvstore.node.replicas import Replicas
from kvstore.node.tenants import Tenants
from kvstore.tiers.base import Reserved, ReserveOutcome, TierKind

_NO_SPACE = ReserveOutcome.NO_SPACE
_OVER_QUOTA = ReserveOutcome.OVER_QUOTA


@dataclass(frozen=True, slots=True)
class _Budget:
    tenant: str
    quota_bytes: int
    block_bytes: int
    slot_bytes: int


class Admission:
    """Whoever puts blocks into the host tier reserves their memory here: writers, loads from disk
    and pulls from other nodes. Owned by the node's event loop.

    A quota bounds the slots of a tenant in the host tier. At its quota a tenant makes room from
    blocks of its own that nobody uses, coldest first, and never from those of others; what does not
    fit then is OVER_QUOTA. Below its quota it competes with all others in the one order of
    eviction. So where the quotas of all tenants add up to no more than the low watermark, no
    tenant ever costs another a block, as long as their blocks are of one size class (a slab that
    one size class holds is of no use to another).
    """

    def __init__(self, replicas: Replicas, tenants: Tenants, demotion: Demotion | None) -> None:
        self._replicas = replicas
        self._tenants = tenants
        self._demotion = demotion

    def check(self, keys: Sequence[BlockKey], block_bytes: int) -> None:
        """Raises QuotaExceededError for a block that its tenant's quota can never hold."""
        budget = self._budget(keys, block_bytes)
        if budget is not None and budget.slot_bytes > budget.quota_bytes:
            raise QuotaExceededError(
                f"block_bytes: a block of {block_bytes} bytes takes {budget.slot_bytes} bytes of "
                f"memory, and the quota of tenant {budget.tenant!r} is {budget.quota_bytes}; raise "
                "node.quotas for it, or use smaller blocks"
            )

    def reserve(self, keys: Sequence[BlockKey], block_bytes: int) -> Reserved:
        """See `AddressableTier.reserve`; events of what was evicted are sent. `keys` are of one
        layout."""
        budget = self._budget(keys, block_bytes)
        if budget is None or self._free_bytes(budget) >= len(keys) * budget.slot_bytes:
            return self._reserve(keys, block_bytes)
        return self._reserve_within(keys, budget)

    def _budget(self, keys: Sequence[BlockKey], block_bytes: int) -> _Budget | None:
        tenant = self._tenants.owner(keys[0].layout) if keys else None
        quota_bytes = None if tenant is None else self._tenants.quota_bytes(tenant)
        if tenant is None or quota_bytes is None:
            return None
        slot_bytes = self._replicas.host.bytes_needed(block_bytes)
        return _Budget(tenant, quota_bytes, block_bytes, slot_bytes)

    def _free_bytes(self, budget: _Budget) -> int:
        return budget.quota_bytes - self._tenants.host_bytes(budget.tenant)

    def _reserve_within(self, keys: Sequence[BlockKey], budget: _Budget) -> Reserved:
        host = self._replicas.host
        residents = host.acquire(keys)  # a chain does not lose its head to its own tail
        held = [key for key, r in zip(keys, residents, strict=True) if r is not None]
        here = set(held)
        new = dict.fromkeys(key for key in keys if key not in here and not host.pending(key))
        try:
            refused = self._fit(list(new), budget)
            asked = [key for key in keys if key not in refused]
            reserved = self._reserve(asked, budget.block_bytes)
        finally:
            host.release(held)
        self._tenants.over_quota[budget.tenant] += len(refused)
        outcomes = iter(reserved.outcomes)
        merged = [_OVER_QUOTA if key in refused else next(outcomes) for key in keys]
        return Reserved(merged, reserved.slots, reserved.evicted)

    def _fit(self, new: list[BlockKey], budget: _Budget) -> set[BlockKey]:
        """Make room for new blocks from the tenant's own; those that do not fit."""
        self._evict_own(len(new) * budget.slot_bytes, budget)
        if self._demotion is not None and self._demotion.guards_any:
            with self._demotion.unguarded():
                self._evict_own(len(new) * budget.slot_bytes, budget)
        fitting = max(self._free_bytes(budget), 0) // budget.slot_bytes
        return set(new[fitting:])

    def _evict_own(self, needed_bytes: int, budget: _Budget) -> None:
        wanted_bytes = needed_bytes - self._free_bytes(budget)
        if wanted_bytes > 0:
            layouts = self._tenants.layouts(budget.tenant)
            evicted = self._replicas.host.evict_within(layouts, wanted_bytes)
            self._replicas.evicted(TierKind.HOST, evicted)

    def _reserve(self, keys: Sequence[BlockKey], block_bytes: int) -> Reserved:
        reserved = self._replicas.reserve_freely(keys, block_bytes)
        if self._demotion is None:
            return reserved
        if _NO_SPACE in reserved.outcomes and self._demotion.guards_any:
            reserved = self._reserve_unguarded(keys, reserved, block_bytes, self._demotion)
        self._demotion.write_asked(len(keys) * block_bytes)
        return reserved

    def _reserve_unguarded(
        self, keys: Sequence[BlockKey], first: Reserved, block_bytes: int, demotion: Demotion
    ) -> Reserved:
        """No clean block is left: some that are not on disk yet have to go."""
        with demotion.unguarded():
            second = self._replicas.reserve_freely(keys, block_bytes)
        outcomes = zip(first.outcomes, second.outcomes, strict=True)
        merged = [later if outcome is _NO_SPACE else outcome for outcome, later in outcomes]
        # Room runs out from the tail of `keys`: the slots of the second try follow the others.
        return Reserved(merged, [*first.slots, *second.slots], [*first.evicted, *second.evicted])
