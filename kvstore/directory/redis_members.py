"""Which nodes are alive, in Redis: registration, heartbeats, withdrawal."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from kvstore.core.errors import ProtocolError
from kvstore.core.ids import NodeId
from kvstore.directory import records
from kvstore.directory import redis_scripts as scripts
from kvstore.directory.base import NodeRecord
from kvstore.directory.heartbeat import HEARTBEAT_TIME_S
from kvstore.directory.redis_connection import Call, RedisConnection
from kvstore.directory.redis_directory import Fence
from kvstore.events.publisher import HEARTBEAT_S

_LOG = logging.getLogger(__name__)

_TTL_MS = round(1000 * (HEARTBEAT_TIME_S - HEARTBEAT_S))
"""The others see that a record expired with their own next heartbeat."""
_KEEP_MS = 60_000
"""A node silent for longer has to tell all its blocks again. For less, they are only hidden."""
_DEADLINE_S = 1.0

_INFO: Call = ["INFO", "server"]


@dataclass(frozen=True, slots=True)
class Registration:
    """From now on the node's blocks may be told. It is lost when another start of the node
    registers, when the node was silent for long, and when Redis loses its data."""

    fence: Fence
    run_id: str
    """Of the Redis process that knows of it. Another one may have forgotten what came last, even
    if it kept this registration: what it loads from disk is a state of the past."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat brought."""

    registered: bool
    """The registration holds, and nothing told under it is lost."""
    sweep_due: bool
    nodes: Mapping[NodeId, NodeRecord]
    """The other live nodes."""


class RedisMembers:
    """The verbs of one node about itself. One event loop; shares `connection`.

    Raises UnavailableError and DeadlineExceededError.
    """

    def __init__(self, connection: RedisConnection, namespace: str, own: NodeRecord) -> None:
        self._connection = connection
        self._prefix = f"{namespace}:"
        self._own = own
        self._record = records.to_wire(own).SerializeToString()

    async def register(self) -> Registration | None:
        """Begin anew: whatever was told of this node before is forgotten. None: a later start of
        the node is alive, and this one must not speak for it."""
        fence = Fence(self._own.node_id, f"{self._own.boot_id:020d}:{secrets.token_hex(8)}")
        register = self._script(scripts.REGISTER, "", fence.token, self._record, _TTL_MS, _KEEP_MS)
        info, registered = await self._connection.pipeline(
            [_INFO, register], deadline_s=_DEADLINE_S
        )
        return Registration(fence, info["run_id"]) if registered == 1 else None

    async def beat(self, registration: Registration | None) -> Beat:
        """Say that this node lives, and hear who else does."""
        token = registration.fence.token if registration else ""
        beat = self._script(scripts.HEARTBEAT, token, self._record, _TTL_MS, _KEEP_MS)
        info, (held, dead, packed) = await self._connection.pipeline(
            [_INFO, beat], deadline_s=_DEADLINE_S
        )
        same = registration is not None and info["run_id"] == registration.run_id
        return Beat(bool(held) and same, bool(dead), self._others(packed))

    async def withdraw(self, registration: Registration) -> None:
        """The node leaves: it and its replicas disappear at once."""
        withdraw = self._script(scripts.WITHDRAW, registration.fence.token)
        await self._connection.pipeline([withdraw], deadline_s=_DEADLINE_S)

    def _others(self, packed: list[bytes]) -> Mapping[NodeId, NodeRecord]:
        nodes = {}
        for one in packed:
            try:
                record = records.parse(one)
            except ProtocolError as error:
                _LOG.debug("%s: skipped a record: %s", self._connection.name, error)
                continue
            if record.node_id != self._own.node_id:
                nodes[record.node_id] = record
        return nodes

    def _script(self, source: str, fence: str, *arguments: bytes | str | int) -> Call:
        """The token of a change of the holders comes first."""
        token = secrets.token_bytes(8)
        return ["EVAL", source, 0, self._prefix, self._own.node_id, fence, token, *arguments]
