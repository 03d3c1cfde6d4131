"""Pins, removal, streaming, quotas and write policies together, over random histories."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kvstore.core.errors import LeaseExpiredError, ReservationExpiredError
from kvstore.node.config import NodeConfig
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .conftest import BLOCK_BYTES, TTL_S, Harness, content, make_keys

NAMES = st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True)
HOST_BYTES = 16 * BLOCK_BYTES
QUOTA_BYTES = 10 * BLOCK_BYTES


class LifecycleMachine(RuleBasedStateMachine):
    """Model: which blocks could be here at all. A block that is read holds the bytes of its key; a
    removed one is not found before it is written again; bounds hold after every step; in the end
    nothing is left."""

    policy = "write-through"
    reservations = Bundle("reservations")
    leases = Bundle("leases")
    streams = Bundle("streams")

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        config = NodeConfig(
            host=HOST_BYTES,
            disk=64 * BLOCK_BYTES,
            disk_path=self.folder / "disk",
            arena_folder=self.folder,
            quotas={"": QUOTA_BYTES},
            pin_share=0.25,
            disk_policy=self.policy,
        )
        self.store = Harness(config)
        self._run(self._start())
        self.writer, self.reader = self.store.open(local=True), self.store.open(local=True)
        self.store.manager.fold(self.writer, make_keys())
        self.possible: set = set()

    async def _start(self):
        await self.store.store.start()
        self.store.store._ticker.cancel()

    @rule(target=reservations, names=NAMES)
    def reserve(self, names):
        keys = make_keys(*names)
        reservation, outcomes = self._run(self._call(self.store.reserve, self.writer, keys))
        for key, outcome in zip(keys, outcomes, strict=True):
            assert outcome is not ReserveOutcome.EXISTS or key in self.possible
        return reservation

    @rule(reservation=consumes(reservations))
    def commit(self, reservation):
        try:
            self._run(self._call(self.store.fill, self.writer, reservation))
        except ReservationExpiredError:
            return
        self.possible.update(reservation.keys)

    @rule(reservation=consumes(reservations))
    def abort(self, reservation):
        self._run(self._call(self.store.manager.abort, self.writer, reservation.id))

    @rule(target=leases, names=NAMES)
    def acquire(self, names):
        return self._acquire(make_keys(*names), streaming=False)

    @rule(target=streams, names=NAMES)
    def follow(self, names):
        return self._acquire(make_keys(*names), streaming=True)

    @rule(lease=streams)
    def confirm(self, lease):
        try:
            confirmed = self._run(self.store.manager.confirm(self.reader, lease.id, 0))
        except LeaseExpiredError:
            return
        for index, key in enumerate(lease.keys):
            miss = confirmed.misses.get(index)
            assert miss in (None, MissReason.PENDING, MissReason.FAILED)
            if miss is None:
                assert self.store.read(self.reader, lease, index) == content(key.hash)

    @rule(lease=consumes(leases))
    def release(self, lease):
        self.store.manager.release(self.reader, [lease.id])

    @rule(lease=consumes(streams))
    def release_stream(self, lease):
        self.store.manager.release(self.reader, [lease.id])

    @rule(names=NAMES, ttl_s=st.sampled_from([None, 3.0, 30.0]))
    def pin(self, names, ttl_s):
        keys = make_keys(*names)
        misses = self._run(self.store.manager.keeper.pin(self.reader, keys, ttl_s, 5.0))
        for key, miss in zip(keys, misses, strict=True):
            assert miss is not None or key in self.possible

    @rule(names=NAMES)
    def unpin(self, names):
        self.store.manager.keeper.unpin(self.reader, make_keys(*names))

    @rule(names=NAMES)
    def remove(self, names):
        keys = make_keys(*names)
        self._run(self.store.manager.keeper.remove(self.writer, keys))
        assert self.store.manager.match(keys) == []
        self.possible.difference_update(keys)

    @rule()
    def clear(self):
        self._run(self.store.manager.keeper.clear(self.writer))
        self.possible.clear()
        assert not self.store.sink.held[TierKind.HOST]

    @rule()
    def flush(self):
        self._run(self.store.flush())

    @rule(part=st.floats(0.1, 1.1))
    def let_time_pass(self, part):
        for _ in range(2):
            self.store.clock.advance(TTL_S * part / 2)
            for session in (self.writer, self.reader):
                self.store.manager.keep_alive(session)
        self._run(self._call(self.store.manager.tick))

    @invariant()
    def what_was_announced_is_there(self):
        host = {info.key for info in self.store.host.inventory()}
        assert self.store.sink.held[TierKind.HOST] == host

    @invariant()
    def bounds_hold(self):
        statistics = self.store.manager.statistics()
        (usage,) = statistics.tenants
        assert usage.host_bytes == self.store.host.statistics().used_bytes <= QUOTA_BYTES
        assert statistics.pinned_bytes <= HOST_BYTES // 4
        assert statistics.write_through_skipped >= 0

    def teardown(self):
        self._run(self.store.flush())
        disk = {info.key for info in self.store.disk.inventory()}
        assert self.store.sink.held[TierKind.DISK] == disk
        self._run(self.store.manager.keeper.clear(self.writer))
        for session in (self.writer, self.reader):
            self._run(self._call(self.store.manager.close_session, session))
        assert self.store.manager.statistics().pinned_bytes == 0
        assert self.store.host.statistics().used_bytes == 0, "nothing leaks"
        self._run(self.store.store.stop())
        self._run(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def _acquire(self, keys, streaming):
        acquired = self._run(
            self.store.manager.acquire(self.reader, keys, 5.0, streaming=streaming)
        )
        lease = acquired.lease
        for index, key in enumerate(lease.keys):
            if index not in lease.pending:
                assert key in self.possible
                assert self.store.read(self.reader, lease, index) == content(key.hash)
        return lease

    def _run(self, work):
        return self.loop.run_until_complete(work)

    async def _call(self, verb, *args):
        """Verbs start disk work, and so want a running loop."""
        return verb(*args)


@pytest.mark.parametrize("policy", ["write-through", "write-back", "selective"])
def test_the_lifecycle_holds_over_random_histories(policy):
    machine = type("Machine", (LifecycleMachine,), {"policy": policy})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=15, stateful_step_count=30, deadline=None)
    )
