"""Bytes of blocks over ZeroMQ: `kvstore.transports.base.BulkChannel` on an event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import zmq

from kvstore.core.errors import (
    DeadlineExceededError,
    ProtocolError,
    ResourceExhaustedError,
    UnavailableError,
)
from kvstore.tiers.base import MissReason
from kvstore.transports.base import BulkRead, BulkTransport, BulkWrite
from kvstore.transports.zmq.bulk_calls import BulkCall, ReadCall, WriteCall
from kvstore.transports.zmq.bulk_link import BulkLink, Submitted
from kvstore.transports.zmq.message_memory import keep_message_memory

_LOG = logging.getLogger(__name__)

MAX_IN_FLIGHT = 1_024


class ZmqBulkChannel:
    """See the protocol. Lives on the running event loop; bytes are copied and checksummed on a
    thread of its own.

    It connects, and connects again after the node was gone, by itself. While there is no connection
    a call waits for one, within its deadline; calls in flight when the connection breaks end at
    once: reads with FAILED blocks, writes with UnavailableError.

    The first one makes this process keep the memory of large messages (`keep_message_memory`).
    """

    transport: BulkTransport = "zmq"

    def __init__(
        self,
        endpoint: str,
        *,
        secure: Callable[[zmq.Socket[bytes]], None] | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        """`secure` is applied to the socket before it connects. Raises ConfigurationError if the
        endpoint cannot be understood; connects later."""
        keep_message_memory()
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(max_in_flight)
        self._connected = asyncio.Event()
        self._closed = False
        self._link = BulkLink(
            endpoint, secure=secure, on_connected=lambda: self._soon(self._connected.set)
        )

    async def wait_connected(self, wait_s: float) -> bool:
        """Whether the node was reached at least once, by then."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), wait_s)
        return self._connected.is_set()

    async def read(
        self, session_id: int, lease_id: int, blocks: Sequence[BulkRead], *, deadline_s: float
    ) -> list[MissReason | None]:
        if not blocks:
            return []
        call = ReadCall(session_id, lease_id, blocks)
        try:
            await self._run(call, deadline_s)
        except DeadlineExceededError:
            return call.outcomes(MissReason.LATE)
        except (UnavailableError, ProtocolError, ResourceExhaustedError) as error:
            _LOG.info("reading from the node ended early: %s", error)
        return call.outcomes(MissReason.FAILED)

    async def write(
        self,
        session_id: int,
        reservation_id: int,
        blocks: Sequence[BulkWrite],
        *,
        deadline_s: float,
    ) -> None:
        if blocks:
            await self._run(WriteCall(session_id, reservation_id, blocks), deadline_s)

    async def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._link.close)

    async def _run(self, call: BulkCall, deadline_s: float) -> None:
        ended = asyncio.Event()
        call.on_end = lambda: self._soon(ended.set)
        expires_at_s = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s), self._slots:
                if self._closed:
                    raise UnavailableError(f"{self._link.endpoint}: the channel is closed")
                self._link.submit(Submitted(call, expires_at_s))
                await ended.wait()
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{self._link.endpoint}: the bytes did not pass within {deadline_s:g} s"
            ) from error
        finally:
            call.abandon()
        if call.error is not None:
            raise call.error

    def _soon(self, work: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(work)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._link.connected else "connecting"
        return f"ZmqBulkChannel({self._link.endpoint}, {state})"
