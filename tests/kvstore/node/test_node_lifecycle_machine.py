"""All verbs together, over random histories: pins, removal, retention, streaming, prefetch, quotas,
write policies, and restarts of the store on its disk."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, invariant, rule, run_state_machine_as_test

from kvstore.core.errors import LeaseExpiredError
from kvstore.tiers.base import MissReason, TierKind

from .conftest import BLOCK_BYTES, make_keys
from .machine import NAMES, RETENTIONS, StoreMachine

HOST_BYTES = 16 * BLOCK_BYTES
QUOTA_BYTES = 10 * BLOCK_BYTES


class LifecycleMachine(StoreMachine):
    """A removed block is not found before it is written again, or the store starts again. What was
    on disk when it stopped is there when it starts."""

    local = True
    policy = "write-through"
    leases = Bundle("leases")
    streams = Bundle("streams")

    def __init__(self):
        super().__init__(
            host=HOST_BYTES,
            disk=64 * BLOCK_BYTES,
            quotas={"": QUOTA_BYTES},
            pin_share=0.25,
            disk_policy=self.policy,
        )
        self.removed: set = set()

    @rule(target=leases, names=NAMES)
    def acquire(self, names):
        return self._acquire(make_keys(*names), streaming=False)

    @rule(target=streams, names=NAMES)
    def follow(self, names):
        return self._acquire(make_keys(*names), streaming=True)

    @rule(held=streams)
    def confirm(self, held):
        store, lease = held
        if store is not self.store:
            return
        try:
            confirmed = self.run(self.store.manager.confirm(self.reader, lease.id, 0))
        except LeaseExpiredError:
            return
        assert set(confirmed.misses.values()) <= {MissReason.PENDING, MissReason.FAILED}
        self.check_bytes(lease, [i for i in range(len(lease.keys)) if i not in confirmed.misses])

    @rule(held=consumes(leases))
    def release(self, held):
        self._release(held)

    @rule(held=consumes(streams))
    def release_stream(self, held):
        self._release(held)

    @rule(names=NAMES)
    def prefetch(self, names):
        keys = make_keys(*names)
        prefetched = self.run(self.store.manager.prefetch(self.reader, keys))
        possible = sum(key in self.possible for key in keys)
        assert prefetched.num_resident + prefetched.num_started <= possible

    @rule(names=NAMES, ttl_s=st.sampled_from([None, 3.0, 30.0]))
    def pin(self, names, ttl_s):
        keys = make_keys(*names)
        misses = self.run(self.store.manager.keeper.pin(self.reader, keys, ttl_s, 5.0))
        for key, miss in zip(keys, misses, strict=True):
            assert miss is not None or key in self.possible

    @rule(names=NAMES)
    def unpin(self, names):
        self.store.manager.keeper.unpin(self.reader, make_keys(*names))

    @rule(names=NAMES, retention=RETENTIONS)
    def retain(self, names, retention):
        keys = make_keys(*names)
        ranges = [retention] if retention else []
        num_here = sum(self.store.host.present(list(keys)))
        num_retained = self.store.manager.keeper.retain(self.reader, keys, ranges)
        assert num_retained == (num_here if retention else 0)

    @rule(names=NAMES)
    def remove(self, names):
        keys = make_keys(*names)
        self.run(self.store.manager.keeper.remove(self.writer, keys))
        assert self.store.manager.match(keys) == []
        self.removed |= self.possible.intersection(keys)
        self.possible.difference_update(keys)

    @rule()
    def clear(self):
        self.run(self.store.manager.keeper.clear(self.writer))
        self.removed |= self.possible
        self.possible.clear()
        assert not self.store.sink.held[TierKind.HOST]

    @rule()
    def restart(self):
        """A removal forgets a block on disk, and does not erase it: it may be back."""
        self.run(self.store.store.stop())
        durable = self.store.sink.held[TierKind.DISK]
        self.begin()
        found = self.store.sink.held[TierKind.DISK]
        self.possible |= self.removed
        assert durable <= found <= self.possible

    @invariant()
    def bounds_hold(self):
        statistics = self.store.manager.statistics()
        (usage,) = statistics.tenants
        assert usage.host_bytes == self.store.host.statistics().used_bytes <= QUOTA_BYTES
        assert statistics.pinned_bytes <= HOST_BYTES // 4
        assert statistics.write_through_skipped >= 0

    def _acquire(self, keys, streaming):
        acquired = self.run(self.store.manager.acquire(self.reader, keys, 5.0, streaming=streaming))
        lease = acquired.lease
        self.check_bytes(lease, [i for i in range(len(lease.keys)) if i not in lease.pending])
        return self.store, lease

    def _release(self, held):
        store, lease = held
        if store is self.store:
            self.store.manager.release(self.reader, [lease.id])


@pytest.mark.parametrize("policy", ["write-through", "write-back", "selective"])
def test_the_lifecycle_holds_over_random_histories(policy):
    machine = type("Machine", (LifecycleMachine,), {"policy": policy})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=15, stateful_step_count=30, deadline=None)
    )
