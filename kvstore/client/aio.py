"""The store's client for asyncio: `kvstore.client.base.StoreClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Self

from kvstore.client.blocks import PrefixMatch, ReservedBlock
from kvstore.client.buffers import Buffers, Expected, readable
from kvstore.client.connection import Connection
from kvstore.client.copying import Copy, copy_all_with_checksums
from kvstore.client.deadline import Deadline
from kvstore.client.endpoint import open_channel
from kvstore.client.messages import keys_message
from kvstore.client.places import Places
from kvstore.client.reading import Reading
from kvstore.client.releases import Releases
from kvstore.client.reservation import Reservation
from kvstore.client.retention import Retention, retention_messages
from kvstore.client.upkeep import Upkeep
from kvstore.client.verification import Verify, effective
from kvstore.core.errors import DeadlineExceededError, InvalidArgumentError, UnavailableError
from kvstore.core.ids import BlockKeys, NodeId
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import TierKind
from kvstore.transports.base import Channel
from kvstore.transports.security.config import ClientSecurity
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys, load_client_keys
from kvstore.wire.v1 import node_pb2

_TIER_OF = {int(tier): tier for tier in TierKind}
"""A tenth of the time of `TierKind(number)`: a prompt has thousands of blocks."""


class Client(Reading, Upkeep):
    """See the protocol. Lives on the event loop that it was connected on."""

    def __init__(self, connection: Connection, layouts: Sequence[KVLayout], verify: Verify) -> None:
        """Use `connect`."""
        self._connection = connection
        self._layouts = {layout.fingerprint: layout for layout in layouts}
        self._verify = verify
        self._releases = Releases()
        self._places = Places(self.touch)
        self._ids = count(1)

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        *,
        client_name: str = "client",
        layouts: Sequence[KVLayout] = (),
        tenant: str = "",
        verify: Verify = "transfers",
        shared_memory: bool = True,
        security: ClientSecurity | None = None,
        deadline_s: float = 5.0,
    ) -> Self:
        """Open a session with the node at `endpoint`: tcp://, ipc:// (ZeroMQ) or grpc://.

        `layouts` are those that will be written, or read in parts; none = any is written. `tenant`
        is whose blocks these are; tenants do not see each other's. `verify`: see
        `kvstore.client.verification`. `shared_memory`: map the node's memory where that can be
        done; without it bytes come over the network. `security`: what to show to the node, see
        docs/security.md. Raises UnavailableError if nobody answers, UnauthenticatedError and
        PermissionDeniedError if the node does not let this client in, InvalidArgumentError if a
        block cannot fit, ConfigurationError for the endpoint and for files of `security`.
        """
        keys = load_client_keys(security) if security else NO_CLIENT_KEYS
        return await cls.over(
            open_channel(endpoint, keys),
            endpoint,
            keys=keys,
            client_name=client_name,
            layouts=layouts,
            tenant=tenant,
            verify=verify,
            shared_memory=shared_memory,
            deadline_s=deadline_s,
        )

    @classmethod
    async def over(
        cls,
        channel: Channel,
        endpoint: str,
        *,
        client_name: str = "client",
        layouts: Sequence[KVLayout] = (),
        tenant: str = "",
        verify: Verify = "transfers",
        shared_memory: bool = True,
        keys: ClientKeys = NO_CLIENT_KEYS,
        deadline_s: float = 5.0,
    ) -> Self:
        """The same over a channel that is there already; the client owns it from now on. `keys` are
        those of the channel."""
        connection = Connection(
            channel,
            endpoint,
            client_name,
            layouts,
            tenant=tenant,
            shared_memory=shared_memory,
            keys=keys,
        )
        try:
            client = cls(connection, layouts, effective(verify))
            await connection.session(Deadline(deadline_s))
        except BaseException:
            await connection.close()
            raise
        return client

    async def match(
        self, keys: BlockKeys, *, remote: bool = False, deadline_s: float = 1.0
    ) -> PrefixMatch:
        request = node_pb2.MatchRequest(keys=keys_message(keys), remote=remote)
        response, _ = await self._connection.call(
            "Match", request, node_pb2.MatchResponse, Deadline(deadline_s)
        )
        tiers = list(map(_TIER_OF.__getitem__, response.tiers))
        elsewhere = []
        if TierKind.REMOTE in response.tiers:
            elsewhere = [i for i, tier in enumerate(tiers) if tier is TierKind.REMOTE]
        names = [NodeId(response.nodes[index]) for index in response.node_indices]
        return PrefixMatch(tiers, dict(zip(elsewhere, names, strict=True)))

    async def reserve(
        self,
        keys: BlockKeys,
        block_bytes: int,
        *,
        retention: Sequence[Retention] = (),
        deadline_s: float = 1.0,
    ) -> Reservation:
        await self._releases.sent()
        request = node_pb2.ReserveRequest(
            keys=keys_message(keys),
            block_bytes=block_bytes,
            reservation_id=next(self._ids),
            retention=retention_messages(retention),
        )
        try:
            response, session = await self._connection.call(
                "Reserve", request, node_pb2.ReserveResponse, Deadline(deadline_s)
            )
        except (DeadlineExceededError, UnavailableError, asyncio.CancelledError):
            # It may be made all the same: say that nobody will write there.
            if request.session_id:
                self._connection.abort(request.session_id, request.reservation_id)
            raise
        return Reservation(self._connection, session, response, block_bytes)

    async def put(
        self,
        keys: BlockKeys,
        blocks: Buffers,
        *,
        retention: Sequence[Retention] = (),
        deadline_s: float = 1.0,
    ) -> list[int]:
        layout = self._layouts.get(keys.layout)
        expected = Expected(layout.dtype, layout.shape) if layout else None
        data = readable("blocks", blocks, len(keys), expected)
        if not data:
            return []
        block_bytes = _block_bytes(data, layout)
        async with await self.reserve(
            keys, block_bytes, retention=retention, deadline_s=deadline_s
        ) as reservation:
            written = [
                ReservedBlock(block.index, block.view[: data[block.index].nbytes])
                for block in reservation.blocks
            ]
            copies = [Copy(block.index, block.view, data[block.index]) for block in written]
            total_bytes = sum(copy.data.nbytes for copy in copies)
            checksums = await self.run_shared(total_bytes, copy_all_with_checksums, copies)
            if written:
                await reservation.commit_as(written, [checksums[b.index] for b in written])
        return sorted(reservation.stored)

    async def close(self) -> None:
        """Ends the session, with all that it holds. Idempotent."""
        await self._places.close()
        await self._releases.close()
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _block_bytes(data: Sequence[memoryview], layout: KVLayout | None) -> int:
    longest = max(block.nbytes for block in data)
    if layout is None:
        return longest
    if longest > layout.block_bytes:
        raise InvalidArgumentError(
            f"blocks: {longest} bytes are more than the {layout.block_bytes} of a block of the "
            "keys' layout; use the keys of the layout that the blocks have"
        )
    return layout.block_bytes
