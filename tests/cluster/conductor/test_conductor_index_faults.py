"""The index of a conductor whose events are lost, repeated, late, and of who knows whom."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conductor.feed import IndexFeed
from cluster.conductor.index import PrefixIndex
from cluster.conductor.routing_keys import RoutingKeys
from kvstore.core.errors import ProtocolError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events import codec
from kvstore.events.cursor import Cursor, Step
from kvstore.events.replay_buffer import ReplayBuffer
from kvstore.tiers.base import TierKind
from kvstore.wire.v1.event_pb2 import BlockEvent, EventBatch, ReplayResponse

LAYOUT = LayoutFingerprint(bytes(16))
TIERS = (TierKind.DEVICE, TierKind.HOST)
HASHES = [BlockHash(random.Random(n).randbytes(32)) for n in range(24)]
REPLAYED_BATCHES = 4


class Publisher:
    """What a member holds, as messages on the wire; restarts lose part of it."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self.held: dict[TierKind, set[BlockHash]] = {tier: set() for tier in TIERS}
        self._rng = rng
        self._epoch = self._sequence = 0
        self.restart()

    def restart(self) -> None:
        self._epoch += 1
        self._sequence = 0
        self._buffer = ReplayBuffer(REPLAYED_BATCHES, 1 << 20)
        self.held[TierKind.DEVICE] = set()

    def change(self) -> bytes:
        tier = self._rng.choice(TIERS)
        names = self._rng.sample(HASHES, self._rng.randint(1, 8))
        match self._rng.choice(["stored", "stored", "removed", "cleared"]):
            case "stored":
                self.held[tier] |= set(names)
                events = list(codec.stored_events(tier, BlockKeys(LAYOUT, names)))
            case "removed":
                self.held[tier] -= set(names)
                events = list(codec.removed_events(tier, BlockKeys(LAYOUT, names)))
            case _:
                self.held[tier] = set()
                events = [codec.cleared_event(tier)]
        self._sequence += 1
        message = self._message(events)
        self._buffer.append(self._sequence, message)
        return message

    def heartbeat(self) -> bytes:
        return self._message([])

    def answer(self, epoch: int, sequence: int) -> Iterator[bytes]:
        """To a replay request; a snapshot has one block a frame."""
        held = self._buffer.since(sequence) if epoch == self._epoch and sequence else None
        if held is not None:
            for packed in held:
                batch = EventBatch.FromString(packed)
                yield self._frame(batch.sequence, batch.events)
            yield self._frame(self._sequence, [], last=True)
            return
        for tier, names in self.held.items():
            for name in sorted(names):
                events = codec.stored_events(tier, BlockKeys(LAYOUT, [name]))
                yield self._frame(self._sequence, events, snapshot=True)
        yield self._frame(self._sequence, [], snapshot=True, last=True)

    def _message(self, events: list[BlockEvent]) -> bytes:
        return EventBatch(
            publisher_id=self.name, epoch=self._epoch, sequence=self._sequence, events=events
        ).SerializeToString()

    def _frame(self, sequence, events, *, snapshot=False, last=False) -> bytes:
        return ReplayResponse(
            epoch=self._epoch, sequence=sequence, events=events, snapshot=snapshot, last=last
        ).SerializeToString()


class Follower:
    """`EventSubscriber` without its sockets: one publisher's events into the index."""

    def __init__(self, publisher: Publisher, index: PrefixIndex, slot: int) -> None:
        index.forget(slot)
        self._publisher = publisher
        self._feed = IndexFeed(index, slot, lambda: True)
        self._cursor = Cursor()

    def live(self, message: bytes, answered: int | None) -> None:
        """`answered`: so many frames of a replay arrive, and then none; None: all do."""
        batch = codec.parse(EventBatch, message)
        if batch.publisher_id != self._publisher.name:
            return
        step = self._cursor.live(batch.epoch, batch.sequence, empty=not batch.events)
        self._take(step, batch)
        if step in (Step.REPLAY, Step.RESET_AND_REPLAY):
            self._replay(answered)

    def catch_up(self, messages: list[bytes]) -> None:
        for message in messages:
            self.live(message, None)

    def _replay(self, answered: int | None) -> None:
        point = self._cursor.replay_point()
        frames = list(self._publisher.answer(point.epoch, point.from_sequence))
        for packed in frames[:answered]:
            frame = codec.parse(ReplayResponse, packed)
            step = self._cursor.replayed(
                frame.epoch,
                frame.sequence,
                snapshot=frame.snapshot,
                empty=not frame.events,
                last=frame.last,
            )
            self._take(step, frame)

    def _take(self, step: Step, message: EventBatch | ReplayResponse) -> None:
        if step in (Step.RESET_AND_APPLY, Step.RESET_AND_REPLAY):
            self._feed.reset()
        if step in (Step.APPLY, Step.RESET_AND_APPLY):
            codec.deliver(message.events, self._feed)


HAPPENINGS = ["change"] * 5 + ["lose", "repeat", "late", "restart", "conductor", "unknown"]


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(0, 120))
def test_faults_of_all_kinds_leave_the_index_equal_to_the_truth(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    publishers = [Publisher(f"worker-{slot}", rng) for slot in range(3)]
    index = PrefixIndex()
    followers = [Follower(p, index, slot) for slot, p in enumerate(publishers)]
    on_the_way: list[list[bytes]] = [[] for _ in publishers]
    for _ in range(steps):
        slot = rng.randrange(3)
        publisher, follower, waiting = publishers[slot], followers[slot], on_the_way[slot]
        answered = rng.choice([None, None, 0, 2])
        match rng.choice(HAPPENINGS):
            case "change":
                follower.live(publisher.change(), answered)
            case "lose":
                publisher.change()
            case "repeat" if waiting:
                follower.live(rng.choice(waiting), answered)
            case "late":
                waiting.append(publisher.change())
            case "restart":
                publisher.restart()
            case "conductor":
                index = PrefixIndex()
                followers = [Follower(p, index, number) for number, p in enumerate(publishers)]
            case "unknown":
                follower.live(Publisher("stranger", rng).change(), answered)
    for follower, publisher, waiting in zip(followers, publishers, on_the_way, strict=True):
        follower.catch_up([publisher.heartbeat(), *waiting])
    check_equal(index, publishers)


def check_equal(index: PrefixIndex, publishers: list[Publisher]) -> None:
    for slot, publisher in enumerate(publishers):
        for tier, names in publisher.held.items():
            assert index.held(slot, tier) == set(RoutingKeys.of_hashes(sorted(names)))
    together = {name for p in publishers for names in p.held.values() for name in names}
    assert len(index) == len(together)


@pytest.mark.parametrize("tier", [0, 4, 99])
def test_an_event_that_cannot_be_changes_nothing(tier: int) -> None:
    rng = random.Random(0)
    publisher, index = Publisher("worker", rng), PrefixIndex()
    follower = Follower(publisher, index, 0)
    follower.live(publisher.heartbeat(), None)
    batch = EventBatch.FromString(publisher.change())
    bad = batch.events.add()
    bad.stored.tier = tier
    with pytest.raises(ProtocolError):
        follower.live(batch.SerializeToString(), None)
    assert len(index) == 0
