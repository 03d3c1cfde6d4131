"""The block manager against a dict, over random histories."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from kvstore.core.errors import ReservationExpiredError
from kvstore.node.config import NodeConfig
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .conftest import TTL_S, Harness, content, make_keys

NAMES = st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True)


class ManagerMachine(RuleBasedStateMachine):
    """Model: which blocks were ever committed, and which are reserved. Whatever is read must hold
    the bytes of its key, and only blocks that were committed can be read."""

    reservations = Bundle("reservations")
    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        config = NodeConfig(
            host=512 << 10, disk=2 << 20, disk_path=self.folder / "disk", arena_folder=self.folder
        )
        self.store = Harness(config)
        self.loop.run_until_complete(self._start())
        self.session = self.store.open()
        self.committed: set = set()
        self.num_fillers = 0

    async def _start(self):
        await self.store.store.start()
        self.store.store._ticker.cancel()

    @rule(target=reservations, names=NAMES)
    def reserve(self, names):
        keys = make_keys(*names)
        reservation, outcomes = self._run(self._sync(self.store.reserve, self.session, keys))
        for key, outcome in zip(keys, outcomes, strict=True):
            if outcome is ReserveOutcome.EXISTS:
                assert key in self.committed
        return reservation

    @rule(reservation=consumes(reservations))
    def commit(self, reservation):
        try:
            self._run(self._sync(self.store.fill, self.session, reservation))
        except ReservationExpiredError:
            return
        self.committed.update(reservation.keys)

    @rule(reservation=consumes(reservations))
    def abort(self, reservation):
        self.store.manager.abort(self.session, reservation.id)

    @rule(target=leases, names=NAMES)
    def acquire(self, names):
        keys = make_keys(*names)
        acquired = self._run(self.store.acquire(self.session, keys))
        for key, tier in zip(keys, acquired.tiers, strict=True):
            if isinstance(tier, TierKind):
                assert key in self.committed
            elif tier is MissReason.NEVER_STORED and key in self.committed:
                # The disk gives a block up on its own thread, and the node learns of it when the
                # write is over: then it knows why.
                self._run(self.store.flush())
                replicas = self.store.manager._replicas
                assert replicas.tier_of(key) or replicas.why_absent(key) is MissReason.EVICTED
        self._check(acquired.lease)
        return acquired.lease

    @rule(lease=leases)
    def read_again(self, lease):
        if lease.id in self.store.manager._sessions.use(self.session).leases:
            self._check(lease)

    @rule(lease=consumes(leases))
    def release(self, lease):
        self.store.manager.release(self.session, [lease.id])

    @rule()
    def flush(self):
        self._run(self.store.flush())

    @rule(names=NAMES)
    def press_out_of_the_host_tier(self, names):
        """Written, on disk, and evicted by others: the next reader has them promoted."""
        self._put(make_keys(*names))
        self._run(self.store.flush())
        self._put(make_keys(*(f"filler {self.num_fillers + i}" for i in range(8))))
        self.num_fillers += 8

    @rule(part=st.floats(0.1, 1.1))
    def let_time_pass(self, part):
        self.store.clock.advance(TTL_S * part / 2)
        self.store.manager.keep_alive(self.session)
        self.store.clock.advance(TTL_S * part / 2)
        self.store.manager.keep_alive(self.session)
        self._run(self._sync(self.store.manager.tick))

    @invariant()
    def what_was_announced_is_there(self):
        host = {info.key for info in self.store.host.inventory()}
        assert self.store.sink.held[TierKind.HOST] == host

    @invariant()
    def bytes_are_bounded(self):
        for tier in self.store.manager.statistics().tiers:
            assert tier.used_bytes <= tier.capacity_bytes

    def teardown(self):
        self._run(self.store.flush())
        disk = {info.key for info in self.store.disk.inventory()}
        assert self.store.sink.held[TierKind.DISK] == disk
        self.store.manager.close_session(self.session)
        self.store.manager._replicas.lost(TierKind.HOST, [])
        self.store.host.drop([info.key for info in self.store.host.inventory()])
        assert self.store.host.statistics().used_bytes == 0, "nothing leaks"
        self._run(self.store.store.stop())
        self._run(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def _put(self, keys):
        outcomes = self._run(self._sync(self.store.put, self.session, keys))
        written = zip(keys, outcomes, strict=True)
        self.committed.update(key for key, o in written if o is ReserveOutcome.RESERVED)

    def _check(self, lease):
        for index, key in enumerate(lease.keys):
            assert self.store.read(self.session, lease, index) == content(key.hash)

    def _run(self, work):
        return self.loop.run_until_complete(work)

    async def _sync(self, verb, *args):
        """Verbs start disk work, and so want a running loop."""
        return verb(*args)


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
