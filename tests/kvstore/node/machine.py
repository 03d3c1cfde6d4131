"""What random histories of one store have in common, whatever else a history is made of."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvstore.core.errors import ReservationExpiredError
from kvstore.node.config import NodeConfig
from kvstore.node.retention import RetentionRange
from kvstore.tiers.base import ReserveOutcome, TierKind

from .conftest import BLOCK_BYTES, TTL_S, Harness, content, make_keys

NAMES = st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True)
RETENTIONS = st.none() | st.builds(
    RetentionRange, st.just(0), st.just(6), st.integers(0, 100), st.sampled_from([None, 3.0])
)


class StoreMachine(RuleBasedStateMachine):
    """Model: which blocks could be here at all. What is reserved, committed and announced agrees
    with it after every step; in the end nothing is left.

    Reservations and leases belong to one life of the store: those of an earlier one are passed
    over.
    """

    local = False
    """Whether its sessions map the arena."""
    reservations = Bundle("reservations")

    def __init__(self, **settings):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.config = NodeConfig(
            disk_path=self.folder / "disk", arena_folder=self.folder, **settings
        )
        self.possible: set = set()
        self.begin()

    def begin(self):
        self.store = Harness(self.config)
        self.run(self._start())
        self.writer, self.reader = (self.store.open(local=self.local) for _ in range(2))
        self.store.manager.fold(self.writer, make_keys())

    async def _start(self):
        await self.store.store.start()
        self.store.store._ticker.cancel()

    @rule(target=reservations, names=NAMES, retention=RETENTIONS)
    def reserve(self, names, retention):
        keys = make_keys(*names)
        ranges = [retention] if retention else []
        reservation, outcomes = self.call(
            self.store.manager.reserve, self.writer, keys, BLOCK_BYTES, 0, ranges
        )
        for key, outcome in zip(keys, outcomes, strict=True):
            assert outcome is not ReserveOutcome.EXISTS or key in self.possible
        return self.store, reservation

    @rule(reserved=consumes(reservations))
    def commit(self, reserved):
        store, reservation = reserved
        if store is not self.store:
            return
        try:
            self.call(self.store.fill, self.writer, reservation)
        except ReservationExpiredError:
            return
        self.possible.update(reservation.keys)

    @rule(reserved=consumes(reservations))
    def abort(self, reserved):
        store, reservation = reserved
        if store is self.store:
            self.call(self.store.manager.abort, self.writer, reservation.id)

    @rule()
    def flush(self):
        self.run(self.store.flush())

    @rule(part=st.floats(0.1, 1.1))
    def let_time_pass(self, part):
        for _ in range(2):
            self.store.clock.advance(TTL_S * part / 2)
            for session in (self.writer, self.reader):
                self.store.manager.keep_alive(session)
        self.call(self.store.manager.tick)

    @invariant()
    def what_was_announced_is_there(self):
        host = {info.key for info in self.store.host.inventory()}
        assert self.store.sink.held[TierKind.HOST] == host

    @invariant()
    def bytes_are_bounded(self):
        for tier in self.store.manager.statistics().tiers:
            assert tier.used_bytes <= tier.capacity_bytes

    def teardown(self):
        self.run(self.store.flush())
        disk = {info.key for info in self.store.disk.inventory()}
        assert self.store.sink.held[TierKind.DISK] == disk
        self.run(self.store.manager.keeper.clear(self.writer))
        for session in (self.writer, self.reader):
            self.call(self.store.manager.close_session, session)
        assert self.store.manager.statistics().pinned_bytes == 0
        assert self.store.host.statistics().used_bytes == 0, "nothing leaks"
        self.run(self.store.store.stop())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def check_bytes(self, lease, indices=None):
        for index in range(len(lease.keys)) if indices is None else indices:
            key = lease.keys[index]
            assert key in self.possible
            assert self.store.read(self.reader, lease, index) == content(key.hash)

    def run(self, work):
        return self.loop.run_until_complete(work)

    def call(self, verb, *args):
        """Verbs start disk work, and so want a running loop."""

        async def call():
            return verb(*args)

        return self.run(call())
