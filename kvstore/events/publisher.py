"""Publishes what a node or worker holds: live batches on a PUB socket, missed ones on request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import zmq
import zmq.asyncio

from kvstore.core.ids import BlockKeys
from kvstore.events import codec
from kvstore.events.base import Inventory
from kvstore.events.outbox import Outbox
from kvstore.events.replay_buffer import ReplayBuffer
from kvstore.events.replay_server import ReplayServer
from kvstore.events.sockets import Secure, bind
from kvstore.tiers.base import TierKind
from kvstore.wire.v1.event_pb2 import BlockEvent, EventBatch, ReplayRequest, ReplayResponse

HEARTBEAT_S = 0.5
_COALESCE_S = 0.002
"""Longest time that an event waits for others to share its batch."""
_MAX_WAITING_BYTES = 64 << 20
_MAX_REPLAY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    sequence: int
    overflows: int
    replays: int
    snapshots: int
    malformed_requests: int


class EventPublisher:
    """An `EventSink` that tells every subscriber, in order, under sequence numbers without holes.

    Lifecycle: construct → `start` → `stop`, the two on one event loop. Events recorded before
    `start` are kept and sent then; those recorded after `stop` are dropped.
    Threads: the sink verbs may be called from one other thread, at any time before the loop closes;
    they take a short lock, never wait, and keep their order. `inventory` is called on the loop. It
    must show at least all that was recorded before that call, in a form that another thread cannot
    change meanwhile; showing more is right too, for events say what is so and may be repeated.
    Failure: a subscriber that misses batches (slow, late, new) asks for them; those no longer held
    are answered by a snapshot of `inventory`. When the loop does not come round and 64 MiB wait,
    they are given up and subscribers take a snapshot.
    """

    def __init__(
        self,
        publisher_id: str,
        epoch: int,
        event_endpoint: str,
        replay_endpoint: str,
        inventory: Inventory,
        *,
        secure: Secure | None = None,
        buffer_batches: int = 4096,
    ) -> None:
        """`epoch` is larger at every start of the same publisher: nanoseconds of the clock do.
        `publisher_id` is the member's id where it registers with a conductor. `secure` is applied
        to both sockets before they bind.
        """
        assert epoch >= 1
        self._publisher_id = publisher_id
        self._epoch = epoch
        self._event_endpoint = event_endpoint
        self._replay_endpoint = replay_endpoint
        self._inventory = inventory
        self._secure = secure
        self._sequence = 0
        self._overflows = self._replays = self._snapshots = 0
        self._outbox = Outbox(_MAX_WAITING_BYTES)
        self._buffer = ReplayBuffer(buffer_batches, _MAX_REPLAY_BYTES)
        self._replay_server = ReplayServer(self._answer)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._heartbeat: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def sequence(self) -> int:
        """Of the last batch sent; 0 before the first."""
        return self._sequence

    @property
    def event_endpoint(self) -> str:
        """With the real port, once started."""
        return self._event_endpoint

    @property
    def replay_endpoint(self) -> str:
        """With the real port, once started."""
        return self._replay_endpoint

    def statistics(self) -> PublisherStatistics:
        return PublisherStatistics(
            self._sequence,
            self._overflows,
            self._replays,
            self._snapshots,
            self._replay_server.malformed,
        )

    async def start(self) -> None:
        """Raises ConfigurationError if an endpoint cannot be bound; nothing is left open then."""
        assert self._context is None, "started twice"
        self._context = zmq.Context()
        try:
            self._socket = self._context.socket(zmq.PUB)
            self._event_endpoint = bind(self._socket, self._event_endpoint, self._secure)
            self._replay_endpoint = self._replay_server.start(
                zmq.asyncio.Context(self._context), self._replay_endpoint, self._secure
            )
        except BaseException:
            await self.stop()
            raise
        self._loop = asyncio.get_running_loop()
        self._heartbeat = asyncio.create_task(self._beat())
        self._flush()

    async def stop(self) -> None:
        """Send what is waiting and close. Idempotent."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._heartbeat
            self._flush()
        await self._replay_server.stop()
        if self._socket is not None:
            self._socket.close(linger=0)
        if self._context is not None:
            self._context.term()
        self._loop = self._context = self._socket = self._heartbeat = None

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        self._record(codec.stored_events(tier, keys))

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        self._record(codec.removed_events(tier, keys))

    def cleared(self, tier: TierKind) -> None:
        self._record([codec.cleared_event(tier)])

    def _record(self, events: Iterable[BlockEvent]) -> None:
        if self._outbox.add(events) and (loop := self._loop) is not None:
            loop.call_soon_threadsafe(loop.call_later, _COALESCE_S, self._flush)

    def _flush(self) -> None:
        if self._socket is None:
            return
        taken = self._outbox.take()
        if taken.overflowed:
            self._overflows += 1
            self._sequence += 1  # a number that no batch has: subscribers will miss it
        for events in codec.group(taken.events):
            self._sequence += 1
            batch = self._batch(events)
            self._buffer.append(self._sequence, batch)
            self._send(batch)

    def _batch(self, events: Iterable[BlockEvent]) -> bytes:
        return EventBatch(
            publisher_id=self._publisher_id,
            epoch=self._epoch,
            sequence=self._sequence,
            events=events,
        ).SerializeToString()

    def _send(self, batch: bytes) -> None:
        assert self._socket is not None
        # A PUB socket never blocks: it drops for those that are too slow, and they ask again.
        self._socket.send_multipart([self._publisher_id.encode(), batch], zmq.NOBLOCK)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._flush()
            self._send(self._batch([]))

    def _answer(self, request: ReplayRequest) -> Iterator[ReplayResponse]:
        self._flush()
        held = None
        if request.epoch == self._epoch and request.from_sequence >= 1:
            held = self._buffer.since(request.from_sequence)
        if held is None:
            self._snapshots += 1
            return self._snapshot_frames(self._sequence, list(self._inventory()))
        self._replays += 1
        return self._batch_frames(self._sequence, held)

    def _snapshot_frames(
        self, sequence: int, inventory: list[tuple[TierKind, BlockKeys]]
    ) -> Iterator[ReplayResponse]:
        events = (event for tier, keys in inventory for event in codec.stored_events(tier, keys))
        for part in codec.group(events):
            yield ReplayResponse(epoch=self._epoch, snapshot=True, sequence=sequence, events=part)
        yield ReplayResponse(epoch=self._epoch, snapshot=True, sequence=sequence, last=True)

    def _batch_frames(self, sequence: int, held: Iterable[bytes]) -> Iterator[ReplayResponse]:
        for packed in held:
            batch = EventBatch.FromString(packed)
            yield ReplayResponse(epoch=self._epoch, sequence=batch.sequence, events=batch.events)
        yield ReplayResponse(epoch=self._epoch, sequence=sequence, last=True)
