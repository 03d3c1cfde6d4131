"""Which member holds which block: the store-wide view, soft state rebuilt from block events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvstore.core.ids import BlockKeys, MemberId, NodeId
from kvstore.events.base import EventSink, Inventory
from kvstore.tiers.base import TierKind


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a block."""

    publisher: MemberId
    """The node, or the worker for its device tier."""
    tier: TierKind


class Directory(Protocol):
    """Block key → replicas. `kvstore.testing.directory_conformance` is its test suite.

    An answer is a hint: a replica may be gone when it is asked for, and one may exist that is not
    told yet. Verbs are idempotent; those about one publisher take effect in the order of the calls.
    Threads: one event loop. Failure: an implementation with a server behind it raises
    UnavailableError or DeadlineExceededError; the caller goes on without remote replicas.
    """

    async def stored(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None: ...

    async def removed(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None: ...

    async def cleared(self, publisher: MemberId, tier: TierKind) -> None: ...

    async def forget(self, publisher: MemberId) -> None:
        """It is gone, or starts anew: drop all its replicas."""

    async def locate(self, keys: BlockKeys) -> list[Sequence[Replica]]:
        """The replicas of each key, fastest tier first; empty where none is known."""

    async def longest_prefix(self, keys: BlockKeys) -> int:
        """How many leading keys have a replica somewhere."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """Who a node is and where it can be reached; `NodeRecord` in node.proto."""

    node_id: NodeId
    boot_id: int
    """Differs, and grows, on every start; also the epoch of its events."""
    host_id: str
    """The same for two nodes that share a kernel: they may map each other's arena."""
    zmq_endpoint: str
    grpc_address: str
    event_endpoint: str
    replay_endpoint: str


class ClusterView(Protocol):
    """What one node knows of the others: who they are, and which blocks they hold.

    Soft state of one event loop, `start` → `stop`. It degrades rather than fail: whatever it is
    made of being away, `locate` finds nothing, within its deadline, and the node goes on alone. A
    node that died disappears within one heartbeat time, with its replicas.
    """

    @property
    def sink(self) -> EventSink:
        """Takes the node's own block events, where the view has to pass them on; else a null
        sink."""

    async def start(self, own: NodeRecord, inventory: Inventory) -> None:
        """Raises ConfigurationError for an address that cannot be one; that nobody is there is no
        error."""

    async def stop(self) -> None:
        """Withdraw what the others were told of this node, in bounded time. Idempotent."""

    def nodes(self) -> Mapping[NodeId, NodeRecord]:
        """The other nodes that are alive, as far as is known."""

    async def locate(self, keys: BlockKeys, *, deadline_s: float) -> list[Sequence[Replica]]:
        """Replicas on other live nodes, fastest tier first, for each key. Never raises but when
        cancelled."""
