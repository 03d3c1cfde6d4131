"""A subscriber's decisions when messages are lost, repeated and reordered."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.events.cursor import Cursor, ReplayPoint, Step

RING = 3
"""Batches that the model publisher still has: few, so that snapshots happen."""


@dataclass(frozen=True)
class Batch:
    epoch: int
    sequence: int
    adds: frozenset[int] = frozenset()
    takes: frozenset[int] = frozenset()

    @property
    def empty(self) -> bool:
        return not (self.adds or self.takes)

    def apply(self, held: frozenset[int]) -> frozenset[int]:
        return (held | self.adds) - self.takes


@dataclass
class Publisher:
    """A set of numbers, told in batches."""

    epoch: int = 1
    held: frozenset[int] = frozenset()
    sequence: int = 0
    ring: list[Batch] = field(default_factory=list)

    def publish(self, number: int) -> Batch:
        """Adds the number, or takes it away if it is there."""
        change = frozenset([number])
        adds, takes = (frozenset[int](), change) if number in self.held else (change, frozenset())
        self.sequence += 1
        batch = Batch(self.epoch, self.sequence, adds, takes)
        self.held = batch.apply(self.held)
        self.ring = [*self.ring, batch][-RING:]
        return batch

    def skip(self) -> None:
        """Its queue overflowed: it changed, but no batch of that number tells how."""
        self.held = self.held ^ frozenset([99])
        self.sequence += 1
        self.ring = []

    def restart(self) -> None:
        """It keeps what it has (a warm disk), and no batch says so."""
        self.epoch += 1
        self.sequence = 0
        self.ring = []

    def heartbeat(self) -> Batch:
        return Batch(self.epoch, self.sequence)


@dataclass
class Subscriber:
    cursor: Cursor = field(default_factory=Cursor)
    held: frozenset[int] = frozenset()

    def live(self, batch: Batch, publisher: Publisher, answered: int | None) -> None:
        step = self.cursor.live(batch.epoch, batch.sequence, empty=batch.empty)
        self._take(step, batch)
        if step in (Step.REPLAY, Step.RESET_AND_REPLAY):
            self.replay(publisher, answered)

    def replay(self, publisher: Publisher, answered: int | None = None) -> None:
        """Only the first `answered` frames of the answer arrive; all of them if None."""
        for snapshot, batch, last in answer(publisher, self.cursor.replay_point())[:answered]:
            step = self.cursor.replayed(
                batch.epoch, batch.sequence, snapshot=snapshot, empty=batch.empty, last=last
            )
            self._take(step, batch)

    def _take(self, step: Step, batch: Batch) -> None:
        if step in (Step.RESET_AND_APPLY, Step.RESET_AND_REPLAY):
            self.held = frozenset()
        if step in (Step.APPLY, Step.RESET_AND_APPLY):
            self.held = batch.apply(self.held)


def answer(publisher: Publisher, point: ReplayPoint) -> list[tuple[bool, Batch, bool]]:
    epoch, sequence = publisher.epoch, publisher.sequence
    missing = range(point.from_sequence, sequence + 1)
    ring = {batch.sequence: batch for batch in publisher.ring}
    if point.epoch == epoch and point.from_sequence and all(n in ring for n in missing):
        frames = [(False, ring[n], False) for n in missing]
        return [*frames, (False, Batch(epoch, sequence), True)]
    frames = [(True, Batch(epoch, sequence, frozenset([n])), False) for n in sorted(publisher.held)]
    return [*frames, (True, Batch(epoch, sequence), True)]


happenings = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 5)),
    st.tuples(st.just("heartbeat"), st.just(0)),
    st.tuples(st.just("skip"), st.just(0)),
    st.tuples(st.just("restart"), st.just(0)),
    # Deliver the i-th message on its way: not always the oldest, and it may stay to come again.
    st.tuples(st.just("deliver"), st.integers(0, 3)),
    st.tuples(st.just("repeat"), st.integers(0, 3)),
    st.tuples(st.just("lose"), st.integers(0, 3)),
)


@settings(max_examples=300)
@given(st.lists(st.tuples(happenings, st.sampled_from([None, None, 0, 1, 2])), max_size=60))
def test_after_all_troubles_the_subscriber_knows_the_truth(
    script: list[tuple[tuple[str, int], int | None]],
) -> None:
    publisher, subscriber = Publisher(), Subscriber()
    on_the_way: list[Batch] = []
    for (what, number), answered in script:
        match what:
            case "publish":
                on_the_way.append(publisher.publish(number))
            case "heartbeat":
                on_the_way.append(publisher.heartbeat())
            case "skip":
                publisher.skip()
            case "restart":
                publisher.restart()
            case _ if number < len(on_the_way):
                keep = what == "repeat"
                batch = on_the_way[number] if keep else on_the_way.pop(number)
                if what != "lose":
                    subscriber.live(batch, publisher, answered)
    subscriber.live(publisher.heartbeat(), publisher, None)
    assert subscriber.held == publisher.held
    assert subscriber.cursor.synced
    for batch in on_the_way:  # late ones are old news
        subscriber.live(batch, publisher, None)
    assert subscriber.held == publisher.held


def synced(epoch: int = 1, sequence: int = 5) -> Cursor:
    cursor = Cursor(epoch)
    cursor.replayed(epoch, sequence, snapshot=True, empty=True, last=True)
    return cursor


@pytest.mark.parametrize(
    ("epoch", "sequence", "empty", "step"),
    [
        (1, 6, False, Step.APPLY),
        (1, 5, True, Step.IGNORE),  # a heartbeat, all well
        (1, 6, True, Step.REPLAY),  # a heartbeat that tells of a lost batch
        (1, 7, False, Step.REPLAY),
        (1, 3, False, Step.IGNORE),
        (0, 6, False, Step.IGNORE),
        (2, 1, False, Step.RESET_AND_REPLAY),
        (2, 0, True, Step.RESET_AND_REPLAY),
    ],
)
def test_decision_on_a_live_batch(epoch: int, sequence: int, empty: bool, step: Step) -> None:
    assert synced().live(epoch, sequence, empty=empty) is step


def test_asks_for_everything_first_and_for_the_gap_later() -> None:
    assert Cursor(7).replay_point() == ReplayPoint(0, 0)
    assert synced(7, 3).replay_point() == ReplayPoint(7, 4)


def test_half_a_snapshot_does_not_count() -> None:
    cursor = synced()
    assert cursor.replayed(2, 9, snapshot=True, empty=False, last=False) is Step.RESET_AND_APPLY
    assert not cursor.synced
    assert cursor.replay_point() == ReplayPoint(0, 0)
    assert cursor.replayed(2, 9, snapshot=True, empty=False, last=False) is Step.RESET_AND_APPLY
    assert cursor.replayed(2, 9, snapshot=True, empty=True, last=True) is Step.APPLY
    assert cursor.sequence == 9


def test_what_is_registered_as_over_is_not_believed() -> None:
    cursor = Cursor(5)
    assert cursor.replayed(4, 9, snapshot=True, empty=True, last=True) is Step.IGNORE
    assert cursor.live(4, 1, empty=False) is Step.IGNORE
    assert not cursor.synced
