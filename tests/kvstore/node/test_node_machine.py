"""The block manager against a dict, over random histories: memory and disk under pressure."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import Bundle, consumes, rule

from kvstore.tiers.base import MissReason, ReserveOutcome

from .conftest import make_keys
from .machine import NAMES, StoreMachine


class ManagerMachine(StoreMachine):
    """Whatever is read holds the bytes of its key, and a miss has its one reason."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__(host=512 << 10, disk=2 << 20)
        self.num_fillers = 0

    @rule(target=leases, names=NAMES)
    def acquire(self, names):
        keys = make_keys(*names)
        acquired = self.run(self.store.acquire(self.reader, keys))
        for key, tier in zip(keys, acquired.tiers, strict=True):
            if tier is MissReason.NEVER_STORED and key in self.possible:
                # The disk gives a block up on its own thread, and the node learns of it when the
                # write is over: then it knows why.
                self.run(self.store.flush())
                replicas = self.store.manager._replicas
                assert replicas.tier_of(key) or replicas.why_absent(key) is MissReason.EVICTED
        self.check_bytes(acquired.lease)
        return acquired.lease

    @rule(lease=leases)
    def read_again(self, lease):
        if lease.id in self.store.manager._sessions.use(self.reader).leases:
            self.check_bytes(lease)

    @rule(lease=consumes(leases))
    def release(self, lease):
        self.store.manager.release(self.reader, [lease.id])

    @rule(names=NAMES)
    def press_out_of_the_host_tier(self, names):
        """Written, on disk, and evicted by others: the next reader has them promoted."""
        self._put(make_keys(*names))
        self.run(self.store.flush())
        self._put(make_keys(*(f"filler {self.num_fillers + i}" for i in range(8))))
        self.num_fillers += 8

    def _put(self, keys):
        outcomes = self.call(self.store.put, self.writer, keys)
        written = zip(keys, outcomes, strict=True)
        self.possible.update(key for key, o in written if o is ReserveOutcome.RESERVED)


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
