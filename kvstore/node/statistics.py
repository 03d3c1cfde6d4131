"""How a node does: numbers of all its parts at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvstore.node.pull.peer import PeerStatistics
from kvstore.node.pull.replication import Replication
from kvstore.node.reading import Leases
from kvstore.node.replicas import Replicas
from kvstore.node.sessions import Sessions
from kvstore.node.tenants import TenantUsage
from kvstore.node.writing import Reservations
from kvstore.tiers.base import MissReason, TierKind, TierStatistics


@dataclass(frozen=True, slots=True)
class ManagerStatistics:
    """A frozen snapshot. Hits count over the blocks acquired, by the tier they were found in."""

    tiers: Sequence[TierStatistics]
    misses: Mapping[MissReason, int]
    sessions: int
    leases: int
    reservations: int
    write_through_skipped: int
    orphaned_blocks: int
    tenants: Sequence[TenantUsage]
    pinned_bytes: int
    peers: Sequence[PeerStatistics]
    replica_bytes: int


def collect(
    replicas: Replicas,
    sessions: Sessions,
    leases: Leases,
    reservations: Reservations,
    replication: Replication,
    *,
    write_through_skipped: int,
    tenants: Sequence[TenantUsage],
    pinned_bytes: int,
) -> ManagerStatistics:
    host = replicas.host.statistics()
    tiers = [replace(host, corruptions=host.corruptions + leases.num_corrupt)]
    if replicas.disk is not None:
        tiers.append(replicas.disk.statistics())
    open_sessions = sessions.all()
    return ManagerStatistics(
        tiers=[
            *(replace(tier, hits=leases.hits[tier.kind]) for tier in tiers),
            replication.statistics(leases.hits[TierKind.REMOTE]),
        ],
        misses=dict(leases.misses),
        sessions=len(open_sessions),
        leases=sum(len(session.leases) for session in open_sessions),
        reservations=sum(len(session.reservations) for session in open_sessions),
        write_through_skipped=write_through_skipped,
        tenants=tenants,
        pinned_bytes=pinned_bytes,
        orphaned_blocks=reservations.num_orphaned_blocks,
        peers=replication.peers(),
        replica_bytes=replication.used_bytes,
    )
