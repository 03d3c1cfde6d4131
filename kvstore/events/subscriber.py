"""Follows one publisher's block events and keeps a target equal to what it holds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq
import zmq.asyncio

from kvstore.core.errors import ProtocolError
from kvstore.events import codec
from kvstore.events.base import EventSink
from kvstore.events.cursor import Cursor, Step
from kvstore.events.sockets import Secure, connect
from kvstore.wire.v1.event_pb2 import BlockEvent, EventBatch, ReplayRequest, ReplayResponse

_LOG = logging.getLogger(__name__)

_RETRY_S_MIN = 0.05
_RETRY_S_MAX = 2.0


class EventTarget(EventSink, Protocol):
    """What a subscriber feeds: pure state, called on the subscriber's loop."""

    def reset(self) -> None:
        """Forget all that this publisher held, in every tier."""


@dataclass(frozen=True, slots=True)
class SubscriberStatistics:
    epoch: int
    sequence: int | None
    """Of the last batch applied; None while nothing complete is known."""
    applied: int
    ignored: int
    replays: int
    failed_replays: int
    malformed: int


class EventSubscriber:
    """One task on one event loop: `start` → `stop`.

    Begins with a snapshot and follows the live batches; whatever is missed (a gap, a new epoch) is
    asked for, and asked for again with growing pauses (2 s at most) until it is there. Live batches
    wait in the socket meanwhile, bounded; those that overflow are a gap again. Malformed messages
    are counted and skipped. The target keeps what it has while the publisher is away: whoever owns
    the subscriber decides when that is too long.
    """

    def __init__(
        self,
        publisher_id: str,
        event_endpoint: str,
        replay_endpoint: str,
        target: EventTarget,
        *,
        epoch: int = 0,
        sequence: int | None = None,
        context: zmq.asyncio.Context | None = None,
        secure: Secure | None = None,
        replay_deadline_s: float = 5.0,
        turns: asyncio.Lock | None = None,
    ) -> None:
        """Nothing older than `epoch` is believed, and what it told up to `sequence` the target has
        already. `context` can be shared by many subscribers; its owner ends it after they stopped.
        `secure` is applied to every socket before it connects. `replay_deadline_s` is the wait for
        each frame of an answer. Subscribers that share `turns` take one frame after the other, so
        that whoever else is on the loop waits for one of them, and not for one of each.
        """
        self._publisher_id = publisher_id
        self._event_endpoint = event_endpoint
        self._replay_endpoint = replay_endpoint
        self._target = target
        self._secure = secure
        self._replay_deadline_s = replay_deadline_s
        self._turns = turns or asyncio.Lock()
        self._cursor = Cursor(epoch, sequence)
        self._own_context = context is None
        self._context = context
        self._socket: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._applied = self._ignored = self._malformed = 0
        self._replays = self._failed_replays = 0

    @property
    def synced(self) -> bool:
        """Whether the target was complete as of some moment of the publisher's present epoch."""
        return self._cursor.synced

    def statistics(self) -> SubscriberStatistics:
        return SubscriberStatistics(
            self._cursor.epoch,
            self._cursor.sequence,
            self._applied,
            self._ignored,
            self._replays,
            self._failed_replays,
            self._malformed,
        )

    async def start(self) -> None:
        """Raises ConfigurationError if an endpoint is none. That nobody is there is no error."""
        assert self._task is None, "started twice"
        if self._context is None:
            self._context = zmq.asyncio.Context()
        try:
            self._socket = self._context.socket(zmq.SUB)
            connect(self._socket, self._event_endpoint, self._secure)
            self._socket.setsockopt(zmq.SUBSCRIBE, b"")
            connect_check = self._context.socket(zmq.DEALER)
            with contextlib.closing(connect_check):
                connect(connect_check, self._replay_endpoint, self._secure)
        except BaseException:
            await self.stop()
            raise
        self._task = asyncio.create_task(self._run(self._socket))

    async def stop(self) -> None:
        """Idempotent. The target is left as it is."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._socket is not None:
            self._socket.close(linger=0)
        if self._own_context and self._context is not None:
            self._context.term()
            self._context = None
        self._task = self._socket = None

    async def _run(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            try:
                await self._recover()
                while True:
                    await self._live(await socket.recv_multipart())
                    await asyncio.sleep(0)  # a ready message does not let others run
            except Exception:
                # A defect of the target must not end the view of this publisher for good.
                _LOG.exception("events of %s: starting again from a snapshot", self._publisher_id)
                self._cursor.lose()
                await asyncio.sleep(_RETRY_S_MAX)

    async def _live(self, frames: Sequence[bytes]) -> None:
        try:
            batch = codec.parse(EventBatch, frames[-1])
            self._check_publisher(batch)
        except ProtocolError as error:
            self._skip(error)
            return
        step = self._cursor.live(batch.epoch, batch.sequence, empty=not batch.events)
        self._take(step, batch.events)
        if step in (Step.REPLAY, Step.RESET_AND_REPLAY):
            await self._recover()

    async def _recover(self) -> None:
        pause_s = _RETRY_S_MIN
        while not await self._replay():
            self._failed_replays += 1
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_S_MAX)

    async def _replay(self) -> bool:
        """Ask once; whether the answer came whole."""
        assert self._context is not None
        point = self._cursor.replay_point()
        request = ReplayRequest(epoch=point.epoch, from_sequence=point.from_sequence)
        # A socket of its own: late frames of an answer given up cannot mix into the next one.
        socket = self._context.socket(zmq.DEALER)
        with contextlib.closing(socket):
            connect(socket, self._replay_endpoint, self._secure)
            await socket.send(request.SerializeToString())
            try:
                while not await self._replay_frame(socket):
                    pass
            except TimeoutError:
                return False
            except ProtocolError as error:
                self._skip(error)
                self._cursor.lose()
                return False
        self._replays += 1
        return self._cursor.synced

    async def _replay_frame(self, socket: zmq.asyncio.Socket) -> bool:
        # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the frame.
        async with asyncio.timeout(self._replay_deadline_s):
            packed = await socket.recv()
        async with self._turns:
            frame = codec.parse(ReplayResponse, packed)
            step = self._cursor.replayed(
                frame.epoch,
                frame.sequence,
                snapshot=frame.snapshot,
                empty=not frame.events,
                last=frame.last,
            )
            self._take(step, frame.events)
            await asyncio.sleep(0)  # a ready frame does not let others run
        return frame.last

    def _take(self, step: Step, events: Sequence[BlockEvent]) -> None:
        if step in (Step.RESET_AND_APPLY, Step.RESET_AND_REPLAY):
            self._target.reset()
        if step in (Step.APPLY, Step.RESET_AND_APPLY):
            codec.deliver(events, self._target)
            self._applied += 1
        else:
            self._ignored += 1

    def _check_publisher(self, batch: EventBatch) -> None:
        if batch.publisher_id != self._publisher_id:
            raise ProtocolError(
                f"{self._event_endpoint} publishes for {batch.publisher_id!r}; the member must"
                f" register under that id, not {self._publisher_id!r}"
            )

    def _skip(self, error: ProtocolError) -> None:
        if self._malformed == 0:
            _LOG.warning("events of %s: skipped a message: %s", self._publisher_id, error)
        self._malformed += 1
