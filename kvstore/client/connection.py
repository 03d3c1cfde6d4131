"""A client's session with its node: opened, kept alive, and opened anew when it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from kvstore.client.deadline import Deadline
from kvstore.client.endpoint import open_bulk_channel
from kvstore.client.local import open_local
from kvstore.core.errors import (
    ConfigurationError,
    KVStoreError,
    SessionExpiredError,
    UnavailableError,
)
from kvstore.core.layout import KVLayout
from kvstore.tiers.host.arena import Arena
from kvstore.transports.base import BulkChannel, Channel
from kvstore.transports.process import this_process
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.transports.unix.channel import UnixChannel
from kvstore.wire.v1 import block_pb2, node_pb2

_LOG = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)

MAX_ABORTS_UNSENT = 4_096
CLOSE_S = 1.0
PROBE_S = 1.0
"""Longest time that it takes to see that the bulk port of a node cannot be reached from here."""


@dataclass(frozen=True)
class Session:
    """An open session. Bytes go through `arena`, or by `bulk` where it is not mapped; verbs by
    `channel`, which is `local` where there is that shorter way."""

    id: int
    boot_id: int
    ttl_s: float
    arena: Arena | None
    bulk: BulkChannel | None
    channel: Channel
    local: UnixChannel | None = None

    @property
    def lost(self) -> bool:
        """Whether the node went away: what the session held is gone."""
        return self.local is not None and self.local.lost

    async def close(self) -> None:
        if self.arena is not None:
            self.arena.close()
        if self.bulk is not None:
            await self.bulk.close()
        if self.local is not None:
            await self.local.close()


class Connection:
    """Owned by one event loop. `executor` takes large copies and checksums off that loop."""

    def __init__(
        self,
        channel: Channel,
        endpoint: str,
        client_name: str,
        layouts: Sequence[KVLayout],
        *,
        tenant: str = "",
        peer: bool = False,
        shared_memory: bool = True,
        keys: ClientKeys = NO_CLIENT_KEYS,
    ) -> None:
        """`keys` are those of `channel`. `peer`: this process is another node. `shared_memory`: map
        the node's arena if that can be done."""
        self.channel = channel
        self.executor = ThreadPoolExecutor(2, thread_name_prefix="kvstore-client")
        self._endpoint = endpoint
        self._client_name = client_name
        self._layouts = layouts
        self._tenant = tenant
        self._peer = peer
        self._shared_memory = shared_memory
        self._keys = keys
        self._session: Session | None = None
        self._opening = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._aborter: asyncio.Task[None] | None = None
        self._aborts: deque[node_pb2.AbortRequest] = deque(maxlen=MAX_ABORTS_UNSENT)
        self._closed = False

    async def call(
        self, method: str, request: Any, response_type: type[R], deadline: Deadline
    ) -> tuple[R, Session]:
        """Call within the session, in a new one if the node no longer knows the old one."""
        session = await self.session(deadline)
        try:
            return await self._call_in(session, method, request, response_type, deadline), session
        except SessionExpiredError:
            await self._forget(session)
        session = await self.session(deadline)
        return await self._call_in(session, method, request, response_type, deadline), session

    async def session(self, deadline: Deadline) -> Session:
        """The session, opened if there is none."""
        if self._closed:
            raise UnavailableError("the client is closed; connect again")
        if (open_ := self._session) is not None and not open_.lost and self._keeper is not None:
            return open_
        async with self._opening:
            if self._session is not None and self._session.lost:
                await self._forget(self._session)
            if self._session is None:
                self._session = await self._open(deadline)
            if self._keeper is None:
                self._keeper = asyncio.create_task(self._keep_alive())
            return self._session

    def abort(self, session_id: int, reservation_id: int) -> asyncio.Task[None]:
        """Tell the node that nobody writes to that reservation any more; the task never fails.

        The node keeps the memory back until it hears this: what cannot be sent now is sent with
        the next keep-alive.
        """
        self._aborts.append(
            node_pb2.AbortRequest(session_id=session_id, reservation_id=reservation_id)
        )
        if self._aborter is None or self._aborter.done():
            self._aborter = asyncio.create_task(self._send_aborts())
        return self._aborter

    async def close(self) -> None:
        """Ends the session, by which the node frees all that it held. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._aborter is not None:
            await asyncio.wait([self._aborter])
        await self._send_aborts()
        if self._session is not None:
            request = node_pb2.CloseSessionRequest(session_id=self._session.id)
            with suppress(KVStoreError):  # a node that does not hear it notices our silence
                await self.channel.call(
                    "CloseSession", request, node_pb2.CloseSessionResponse, deadline_s=CLOSE_S
                )
            await self._session.close()
        await self.channel.close()
        self.executor.shutdown()

    async def _call_in(
        self,
        session: Session,
        method: str,
        request: Any,
        response_type: type[R],
        deadline: Deadline,
    ) -> R:
        request.session_id = session.id
        return await session.channel.call(
            method, request, response_type, deadline_s=deadline.remaining_s()
        )

    async def _open(self, deadline: Deadline) -> Session:
        if not self._shared_memory:
            return await self._unmapped(await self._open_as(0, 0, deadline), deadline)
        process = this_process()
        opened = await self._open_as(process.pid, process.start_ticks, deadline)
        if not opened.arena_path:
            return await self._unmapped(opened, deadline)
        try:
            arena = Arena.attach(opened.arena_path)
        except ConfigurationError as error:
            _LOG.info("%s: its memory cannot be shared: %s", self._endpoint, error)
        else:
            local = await open_local(opened.local_endpoint, opened.session_id, deadline)
            return self._session_of(opened, arena, None, local)
        # The node must not count on a mapping that we have not got: open as a remote client.
        close = node_pb2.CloseSessionRequest(session_id=opened.session_id)
        await self.channel.call(
            "CloseSession",
            close,
            node_pb2.CloseSessionResponse,
            deadline_s=deadline.remaining_s(),
        )
        return await self._unmapped(await self._open_as(0, 0, deadline), deadline)

    async def _open_as(
        self, pid: int, start_ticks: int, deadline: Deadline
    ) -> node_pb2.OpenSessionResponse:
        request = node_pb2.OpenSessionRequest(
            client_name=self._client_name,
            pid=pid,
            process_start=start_ticks,
            layouts=[_layout_message(layout) for layout in self._layouts],
            tenant=self._tenant,
            peer=self._peer,
        )
        return await self.channel.call(
            "OpenSession",
            request,
            node_pb2.OpenSessionResponse,
            deadline_s=deadline.remaining_s(),
        )

    async def _unmapped(self, opened: node_pb2.OpenSessionResponse, deadline: Deadline) -> Session:
        probe_s = min(deadline.remaining_s() / 2, PROBE_S)
        bulk = await open_bulk_channel(
            self._endpoint, opened.bulk_port, opened.grpc_port, probe_s, self._keys
        )
        return self._session_of(opened, None, bulk)

    def _session_of(
        self,
        opened: node_pb2.OpenSessionResponse,
        arena: Arena | None,
        bulk: BulkChannel | None,
        local: UnixChannel | None = None,
    ) -> Session:
        way = bulk.transport if bulk else "shared memory"
        _LOG.info("%s: bytes go by %s", self._endpoint, way)
        ttl_s = opened.lease_ttl_ms / 1000
        channel = local or self.channel
        return Session(opened.session_id, opened.boot_id, ttl_s, arena, bulk, channel, local)

    async def _forget(self, session: Session) -> None:
        if self._session is session:
            self._session = None
            await session.close()

    async def _keep_alive(self) -> None:
        while True:
            interval_s = self._session.ttl_s / 3 if self._session else CLOSE_S
            await asyncio.sleep(interval_s)
            try:
                await self.call(
                    "KeepAlive",
                    node_pb2.KeepAliveRequest(),
                    node_pb2.KeepAliveResponse,
                    Deadline(interval_s),
                )
            except KVStoreError as error:
                _LOG.debug("keep-alive of %s: %s", self._endpoint, error)
            else:
                await self._send_aborts()

    def _channel_of(self, session_id: int) -> Channel:
        """The one that the session's calls went by: what is sent after them arrives after them."""
        session = self._session
        if session is None or session.id != session_id or session.lost:
            return self.channel
        return session.channel

    async def _send_aborts(self) -> None:
        while self._aborts:
            request = self._aborts.popleft()
            try:
                await self._channel_of(request.session_id).call(
                    "Abort", request, node_pb2.AbortResponse, deadline_s=CLOSE_S
                )
            except KVStoreError:
                self._aborts.append(request)
                return


def _layout_message(layout: KVLayout) -> block_pb2.KVLayout:
    return block_pb2.KVLayout(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_size_tokens=layout.block_size_tokens,
        dtype=layout.dtype,
        first_kv_head=layout.first_kv_head,
        total_kv_heads=layout.total_kv_heads or 0,
        layers=layout.layers,
    )
