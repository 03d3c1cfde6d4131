"""What the node knows, as messages of NodeService."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from kvstore.node.pull.peer import PeerStatistics
from kvstore.node.pull.replication import EverywhereMatch
from kvstore.node.reading import Acquired
from kvstore.node.sessions import Lease
from kvstore.node.tenants import TenantUsage
from kvstore.tiers.base import MissReason, TierKind, TierStatistics
from kvstore.wire.v1 import block_pb2, node_pb2

_SLOT, _CHECKSUM = attrgetter("slot"), attrgetter("checksum")
_OFFSET, _GENERATION = attrgetter("offset"), attrgetter("generation")
_LENGTH_BYTES = attrgetter("length_bytes")


def acquired_message(acquired: Acquired, ttl_ms: int) -> node_pb2.AcquireResponse:
    """Column by column: there is one for every batch that is read."""
    lease, tiers = acquired.lease, acquired.tiers
    slots = list(map(_SLOT, lease.residents))
    here = bytes(tiers)
    missed = bytes(len(here))
    if len(slots) < len(tiers):
        here = bytes(tier if isinstance(tier, TierKind) else 0 for tier in tiers)
        missed = bytes(miss if isinstance(miss, MissReason) else 0 for miss in tiers)
    return node_pb2.AcquireResponse(
        lease_id=lease.id,
        ttl_ms=ttl_ms,
        tiers=here,
        miss_reasons=missed,
        offsets=map(_OFFSET, slots),
        generations=map(_GENERATION, slots),
        lengths_bytes=map(_LENGTH_BYTES, slots),
        checksums=map(_CHECKSUM, lease.residents),
        pending=_pending_flags(lease),
    )


def _pending_flags(lease: Lease) -> bytes:
    if not lease.pending:
        return b""
    return bytes(index in lease.pending for index in range(len(lease.keys)))


def everywhere_message(match: EverywhereMatch) -> node_pb2.MatchResponse:
    nodes = list(dict.fromkeys(match.nodes))
    indices = {node: index for index, node in enumerate(nodes)}
    return node_pb2.MatchResponse(
        num_matched=len(match.tiers),
        tiers=bytes(match.tiers),
        nodes=nodes,
        node_indices=[indices[node] for node in match.nodes],
    )


def tenant_message(usage: TenantUsage) -> node_pb2.TenantStatistics:
    return node_pb2.TenantStatistics(
        tenant=usage.tenant,
        host_bytes=usage.host_bytes,
        quota_bytes=usage.quota_bytes or 0,
        over_quota=usage.over_quota,
    )


def peer_message(peer: PeerStatistics) -> node_pb2.PeerStatistics:
    return node_pb2.PeerStatistics(
        node_id=peer.node_id,
        transport=peer.transport or "",
        breaker=peer.breaker,
        bytes_pulled=peer.bytes_pulled,
        blocks_pulled=peer.blocks_pulled,
        failures=peer.failures,
        bytes_per_s=peer.bytes_per_s,
    )


def tier_message(tier: TierStatistics) -> node_pb2.TierStatistics:
    return node_pb2.TierStatistics(
        tier=block_pb2.Tier.Name(tier.kind),
        capacity_bytes=tier.capacity_bytes,
        used_bytes=tier.used_bytes,
        blocks=tier.blocks,
        hits=tier.hits,
        evictions=tier.evictions,
        corruptions=tier.corruptions,
        errors=tier.errors,
    )


def miss_counts(misses: Mapping[MissReason, int]) -> list[node_pb2.MissCount]:
    return [
        node_pb2.MissCount(reason=block_pb2.MissReason.Name(reason), blocks=blocks)
        for reason, blocks in sorted(misses.items())
    ]
