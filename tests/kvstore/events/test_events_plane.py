"""Publisher and subscriber over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest
import zmq
import zmq.asyncio

from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.codec import MAX_EVENT_HASHES
from kvstore.events.publisher import EventPublisher
from kvstore.events.subscriber import EventSubscriber
from kvstore.tiers.base import TierKind
from kvstore.wire.v1 import block_pb2, event_pb2

LAYOUT = LayoutFingerprint(b"l" * 16)
ANY = "tcp://127.0.0.1:0"


def keys(first: int, last: int) -> BlockKeys:
    return BlockKeys(LAYOUT, [BlockHash(n.to_bytes(32, "big")) for n in range(first, last)])


class Holdings:
    """What somebody holds, as an event sink: the publisher's truth or a subscriber's view."""

    def __init__(self) -> None:
        self.tiers: dict[TierKind, set[BlockHash]] = {}
        self.resets = 0

    def stored(self, tier: TierKind, added: BlockKeys) -> None:
        assert added.layout == LAYOUT
        self.tiers.setdefault(tier, set()).update(added.hashes)

    def removed(self, tier: TierKind, gone: BlockKeys) -> None:
        self.tiers.setdefault(tier, set()).difference_update(gone.hashes)

    def cleared(self, tier: TierKind) -> None:
        self.tiers[tier] = set()

    def reset(self) -> None:
        self.resets += 1
        self.tiers = {}

    def inventory(self) -> list[tuple[TierKind, BlockKeys]]:
        return [(tier, BlockKeys(LAYOUT, sorted(held))) for tier, held in self.tiers.items()]

    def content(self) -> dict[TierKind, set[BlockHash]]:
        return {tier: set(held) for tier, held in self.tiers.items() if held}


class Store:
    """Holdings and their publisher, changed together."""

    def __init__(
        self, epoch: int = 1, event: str = ANY, replay: str = ANY, buffer_batches: int = 4096
    ) -> None:
        self.truth = Holdings()
        self.publisher = EventPublisher(
            "node", epoch, event, replay, self.truth.inventory, buffer_batches=buffer_batches
        )

    def stored(self, tier: TierKind, added: BlockKeys) -> None:
        self.truth.stored(tier, added)
        self.publisher.stored(tier, added)

    def removed(self, tier: TierKind, gone: BlockKeys) -> None:
        self.truth.removed(tier, gone)
        self.publisher.removed(tier, gone)

    def cleared(self, tier: TierKind) -> None:
        self.truth.cleared(tier)
        self.publisher.cleared(tier)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as exits:
        yield exits


async def started(stack: AsyncExitStack, store: Store) -> Store:
    await store.publisher.start()
    stack.push_async_callback(store.publisher.stop)
    return store


async def follow(
    stack: AsyncExitStack, publisher: EventPublisher, view: Holdings, **options: float
) -> EventSubscriber:
    subscriber = EventSubscriber(
        "node",
        publisher.event_endpoint,
        publisher.replay_endpoint,
        view,
        **options,  # type: ignore[arg-type]
    )
    await subscriber.start()
    stack.push_async_callback(subscriber.stop)
    return subscriber


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_view_follows_the_truth(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    store.stored(TierKind.HOST, keys(0, 50))
    view = Holdings()
    subscriber = await follow(stack, store.publisher, view)
    await until(lambda: view.content() == store.truth.content())
    store.stored(TierKind.DISK, keys(0, 10))
    store.removed(TierKind.HOST, keys(20, 30))
    await until(lambda: view.content() == store.truth.content())
    store.cleared(TierKind.DISK)
    left = {*keys(0, 20).hashes, *keys(30, 50).hashes}
    await until(lambda: view.content() == {TierKind.HOST: left})
    assert subscriber.synced
    assert subscriber.statistics().sequence == store.publisher.sequence


async def test_events_of_one_turn_share_a_batch(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    for n in range(100):
        store.stored(TierKind.HOST, keys(n, n + 1))
    await until(lambda: store.publisher.sequence > 0)
    assert store.publisher.sequence == 1


async def test_events_recorded_before_start_are_sent(stack: AsyncExitStack) -> None:
    store = Store()
    store.stored(TierKind.HOST, keys(0, 3))
    await started(stack, store)
    assert store.publisher.sequence == 1


async def test_large_batches_are_split(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    view = Holdings()
    await follow(stack, store.publisher, view)
    many = keys(0, 3 * MAX_EVENT_HASHES + 1)
    store.stored(TierKind.DISK, many)
    await until(lambda: view.content() == store.truth.content())
    assert store.publisher.sequence >= 4
    late = Holdings()
    await follow(stack, store.publisher, late)
    await until(lambda: late.content() == store.truth.content())


async def test_late_subscriber_takes_a_snapshot(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    for n in range(20):
        store.stored(TierKind.HOST, keys(n, n + 1))
    view = Holdings()
    await follow(stack, store.publisher, view)
    await until(lambda: view.content() == store.truth.content())
    assert store.publisher.statistics().snapshots == 1
    assert view.resets == 1


class LossyWire:
    """Stands between publisher and subscriber, and drops live batches while `dropping`."""

    def __init__(self, upstream: str) -> None:
        self._context = zmq.asyncio.Context()
        self._in = self._context.socket(zmq.SUB)
        self._in.connect(upstream)
        self._in.setsockopt(zmq.SUBSCRIBE, b"")
        self._out = self._context.socket(zmq.PUB)
        self._out.bind(ANY)
        self.endpoint = self._out.getsockopt_string(zmq.LAST_ENDPOINT)
        self.dropping = False
        self.dropped = 0
        self._task = asyncio.create_task(self._pass_on())

    async def _pass_on(self) -> None:
        while True:
            frames = await self._in.recv_multipart()
            if self.dropping:
                self.dropped += 1
            else:
                await self._out.send_multipart(frames)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._context.destroy(linger=0)


async def lossy(
    stack: AsyncExitStack, store: Store, view: Holdings
) -> tuple[LossyWire, EventSubscriber]:
    wire = LossyWire(store.publisher.event_endpoint)
    stack.push_async_callback(wire.stop)
    subscriber = EventSubscriber("node", wire.endpoint, store.publisher.replay_endpoint, view)
    await subscriber.start()
    stack.push_async_callback(subscriber.stop)
    # A heartbeat has come through: the wire is open.
    await until(lambda: subscriber.statistics().ignored > 1)
    return wire, subscriber


async def test_lost_batches_are_replayed(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    view = Holdings()
    wire, subscriber = await lossy(stack, store, view)
    wire.dropping = True
    store.stored(TierKind.HOST, keys(0, 5))
    await until(lambda: wire.dropped > 0)
    wire.dropping = False
    # No further event: the heartbeat alone shows that something was missed.
    await until(lambda: view.content() == store.truth.content())
    assert store.publisher.statistics().replays == 1
    assert view.resets == 1  # only the first snapshot's
    assert subscriber.statistics().replays == 2


async def test_loss_beyond_the_buffer_takes_a_snapshot(stack: AsyncExitStack) -> None:
    store = await started(stack, Store(buffer_batches=2))
    view = Holdings()
    wire, _ = await lossy(stack, store, view)
    wire.dropping = True
    for n in range(5):
        before = wire.dropped
        store.stored(TierKind.HOST, keys(n, n + 1))
        await until(lambda before=before: wire.dropped > before)  # type: ignore[misc]
    wire.dropping = False
    await until(lambda: view.content() == store.truth.content())
    assert store.publisher.statistics().replays == 0
    assert store.publisher.statistics().snapshots == 2
    assert view.resets == 2


async def test_restarted_publisher_is_learned_anew(stack: AsyncExitStack) -> None:
    first = await started(stack, Store(epoch=1))
    first.stored(TierKind.HOST, keys(0, 10))
    view = Holdings()
    subscriber = await follow(stack, first.publisher, view, replay_deadline_s=0.2)
    await until(lambda: view.content() == first.truth.content())
    await first.publisher.stop()
    second = Store(2, first.publisher.event_endpoint, first.publisher.replay_endpoint)
    second.truth.stored(TierKind.DISK, keys(50, 60))  # warm from before; no event tells of it
    await started(stack, second)
    await until(lambda: view.content() == second.truth.content())
    assert subscriber.statistics().epoch == 2


async def test_subscriber_waits_for_a_publisher_that_is_not_there_yet(
    stack: AsyncExitStack, tmp_path: str
) -> None:
    store = Store(1, f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay")
    store.truth.stored(TierKind.HOST, keys(0, 3))
    view = Holdings()
    subscriber = await follow(stack, store.publisher, view, replay_deadline_s=0.1)
    await until(lambda: subscriber.statistics().failed_replays > 1)
    await started(stack, store)
    await until(lambda: view.content() == store.truth.content())


async def test_engine_thread_may_record(stack: AsyncExitStack) -> None:
    store = Store()
    lock = threading.Lock()

    def inventory() -> list[tuple[TierKind, BlockKeys]]:
        with lock:  # taken safely, and perhaps newer than the last batch
            return store.truth.inventory()

    store.publisher = EventPublisher("node", 1, ANY, ANY, inventory)
    await started(stack, store)
    view = Holdings()
    await follow(stack, store.publisher, view)

    def engine() -> None:
        for n in range(2000):
            with lock:
                store.stored(TierKind.DEVICE, keys(n, n + 2))
                store.removed(TierKind.DEVICE, keys(n, n + 1))

    thread = threading.Thread(target=engine)
    thread.start()
    await asyncio.to_thread(thread.join)
    # In order: each block was stored twice, then removed, but for the last one.
    await until(lambda: view.content() == {TierKind.DEVICE: set(keys(2000, 2001).hashes)})


async def test_overflow_heals_by_a_snapshot(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.events.publisher._MAX_WAITING_BYTES", 1000)
    store = await started(stack, Store())
    view = Holdings()
    await follow(stack, store.publisher, view)
    await until(lambda: view.resets == 1)
    store.stored(TierKind.HOST, keys(0, 100))
    store.stored(TierKind.HOST, keys(100, 105))
    await until(lambda: view.content() == store.truth.content())
    assert store.publisher.statistics().overflows == 1


@contextmanager
def forged_publisher() -> Iterator[tuple[zmq.Socket[bytes], str]]:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(ANY)
        yield socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)


def forged(**fields: object) -> list[bytes]:
    values: dict[str, object] = {"publisher_id": "node", "epoch": 1, "sequence": 1}
    batch = event_pb2.EventBatch(**(values | fields))  # type: ignore[arg-type]
    return [b"node", batch.SerializeToString()]


def stored_event(tier: block_pb2.Tier, fingerprint: bytes, hashes: bytes) -> event_pb2.BlockEvent:
    wire_keys = block_pb2.BlockKeys(layout_fingerprint=fingerprint, block_hashes=hashes)
    return event_pb2.BlockEvent(stored=event_pb2.BlocksStored(tier=tier, keys=wire_keys))


MALFORMED = [
    [b"node"],
    [b"node", b"\xff\xff\xff"],
    forged(publisher_id="other"),
    forged(events=[event_pb2.BlockEvent()]),
    forged(events=[stored_event(block_pb2.TIER_REMOTE, LAYOUT, b"h" * 32)]),
    forged(events=[stored_event(block_pb2.TIER_UNSPECIFIED, LAYOUT, b"h" * 32)]),
    forged(events=[stored_event(block_pb2.TIER_HOST, b"short", b"h" * 32)]),
    forged(events=[stored_event(block_pb2.TIER_HOST, LAYOUT, b"h" * 33)]),
]


async def test_malformed_messages_are_counted_and_skipped(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    store.stored(TierKind.HOST, keys(0, 5))
    view = Holdings()
    with forged_publisher() as (socket, endpoint):
        subscriber = EventSubscriber("node", endpoint, store.publisher.replay_endpoint, view)
        await subscriber.start()
        stack.push_async_callback(subscriber.stop)

        async def ready() -> None:
            while subscriber.statistics().ignored < 2:
                socket.send_multipart(forged(sequence=0))
                await asyncio.sleep(0.01)

        await asyncio.wait_for(ready(), 20)
        for frames in MALFORMED:
            socket.send_multipart(frames)
        await until(lambda: subscriber.statistics().malformed == len(MALFORMED))
        good = stored_event(block_pb2.TIER_DISK, LAYOUT, keys(7, 8).hashes[0])
        socket.send_multipart(forged(sequence=2, events=[good]))
        await until(lambda: TierKind.DISK in view.content())
    assert view.content()[TierKind.HOST] == set(keys(0, 5).hashes)
    assert view.resets == 1


async def test_target_that_fails_starts_again_from_a_snapshot(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kvstore.events.subscriber._RETRY_S_MAX", 0.01)
    store = await started(stack, Store())
    view = Holdings()
    await follow(stack, store.publisher, view)
    await until(lambda: view.resets == 1)
    good, view.stored = view.stored, lambda *_: 1 / 0  # type: ignore[assignment]
    store.stored(TierKind.HOST, keys(0, 5))
    await until(lambda: "starting again" in caplog.text)
    view.stored = good  # type: ignore[method-assign]
    await until(lambda: view.content() == store.truth.content())


async def test_inventory_that_fails_once_does_not_end_replays(
    stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    store.truth.stored(TierKind.HOST, keys(0, 5))
    tries: list[int] = []

    def inventory() -> list[tuple[TierKind, BlockKeys]]:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("changed during iteration")
        return store.truth.inventory()

    store.publisher = EventPublisher("node", 1, ANY, ANY, inventory)
    await started(stack, store)
    view = Holdings()
    await follow(stack, store.publisher, view, replay_deadline_s=0.1)
    await until(lambda: view.content() == store.truth.content())
    assert "inventory could not be read" in caplog.text


async def test_taken_endpoint_is_a_configuration_error(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    for event, replay in [(store.publisher.event_endpoint, ANY), (ANY, "nonsense")]:
        second = Store(1, event, replay)
        with pytest.raises(ConfigurationError, match="cannot listen on"):
            await second.publisher.start()
        await second.publisher.stop()


async def test_endpoint_that_is_none_is_a_configuration_error() -> None:
    for event, replay in [("nonsense", ANY), ("tcp://127.0.0.1:1", "nonsense")]:
        subscriber = EventSubscriber("node", event, replay, Holdings())
        with pytest.raises(ConfigurationError, match="nonsense"):
            await subscriber.start()


async def test_stop_sends_what_waits_and_later_events_are_dropped(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    view = Holdings()
    await follow(stack, store.publisher, view)
    await until(lambda: view.resets == 1)
    store.stored(TierKind.HOST, keys(0, 5))
    await store.publisher.stop()
    await store.publisher.stop()
    assert store.publisher.sequence == 1
    store.publisher.stored(TierKind.HOST, keys(5, 6))
    assert store.publisher.sequence == 1


async def test_stop_during_a_replay_always_ends(stack: AsyncExitStack) -> None:
    store = await started(stack, Store())
    store.stored(TierKind.HOST, BlockKeys(LAYOUT, [BlockHash(bytes([i]) * 32) for i in range(200)]))
    for turns in range(60):
        subscriber = await follow(stack, store.publisher, Holdings())
        for _ in range(turns):
            await asyncio.sleep(0)
        stopped, _ = await asyncio.wait([asyncio.create_task(subscriber.stop())], timeout=5)
        assert stopped
