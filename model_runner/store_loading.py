"""From the store into the device tier: how much of a prefix, and of which KV groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from kvstore.client.deadline import Deadline
from kvstore.client.sync import SyncClient
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.ports import Clock
from kvstore.tiers.base import MissReason, TierKind
from kvstore.tiers.device.cache import DeviceCache
from model_runner.kv_groups import KVGroup
from model_runner.load_or_compute import LoadPlanner, Offer
from model_runner.misses import missed_blocks
from model_runner.store import Wanted
from model_runner.store_hits import longest_hit
from model_runner.store_lease import LeasedRun

_ATTEMPTS = 3
"""Prefixes that are tried to load, where a block of a window was gone, or came too late."""


@dataclass(frozen=True, slots=True)
class _Plan:
    num_known: int
    """Blocks that are worth it, as far as the node knows now."""
    limit: int
    """Up to here to ask: what follows may be on its way from a worker of this host."""
    tiers: Sequence[TierKind] = ()
    """Of those that are known, if there was a choice."""
    cheaper: range = range(0)
    """Those that are known and are not worth it."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What came of a plan: blocks, or which shorter prefix could still be had."""

    tiers: Sequence[TierKind] = ()
    num_left: int = 0
    told: Mapping[int, MissReason] = field(default_factory=dict)
    """Why blocks were not there, by their place in the prefix."""


@dataclass(frozen=True, slots=True)
class _Copied:
    """Leading blocks of what a group was to copy."""

    group: int
    first: int
    """Place in the prefix of the first one."""
    tiers: Sequence[TierKind]

    @property
    def end(self) -> int:
        return self.first + len(self.tiers)


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One request's blocks, and by when."""

    client: SyncClient
    wanted: Wanted
    deadline: Deadline


class BlockLoader:
    """Fetches leading blocks of all KV groups. Thread-safe.

    One group without a window takes one round trip. With a planner, one more tells it what there is
    to choose from; with windows, one for each group tells whether the prefix has a hole.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        caches: Sequence[DeviceCache],
        planner: LoadPlanner | None,
        clock: Clock,
    ) -> None:
        self._groups = groups
        self._caches = caches
        self._planner = planner
        self._clock = clock
        windows = [i for i, group in enumerate(groups) if group.window_tokens is not None]
        self._leading = [i for i in range(len(groups)) if i not in windows] or windows
        """Groups that tell how long a prefix is; with windows alone, their leading blocks do."""
        self._trailing = [i for i in windows if i not in self._leading]
        self._has_windows = bool(windows)

    def load(self, client: SyncClient, wanted: Wanted, deadline: Deadline) -> Sequence[TierKind]:
        """Returns the tiers of the leading blocks that are in the device tier now, of several
        groups the slowest; fills `wanted.missed`, unless it was too late for all. Raises
        KVStoreError."""
        fetch = _Fetch(client, wanted, deadline)
        plan = self._plan(fetch)
        loaded, cheaper = _Loaded(), plan.cheaper
        for _ in range(_ATTEMPTS):
            if not plan.limit:
                break
            if not fetch.deadline.left_s:
                return []
            loaded = self._load(fetch, plan)
            if loaded.tiers:
                break
            plan = _Plan(loaded.num_left, loaded.num_left)
        rest = range(len(loaded.tiers), len(wanted.hashes))
        wanted.missed.extend(missed_blocks(rest, loaded.told, cheaper))
        return list(loaded.tiers)

    def _plan(self, fetch: _Fetch) -> _Plan:
        """All that is asked for, if there is nothing to choose."""
        hashes = fetch.wanted.hashes
        if self._planner is None and not self._has_windows:
            return _Plan(0, len(hashes))
        matches = [self._match(fetch, index, hashes) for index in self._leading]
        tiers = [max(of_block) for of_block in zip(*matches, strict=False)]
        worth = self._worth(tiers, fetch.wanted)
        windows = [self._groups[index] for index in self._trailing]
        hit = longest_hit(windows, worth, partial(self._num_trailing, fetch))
        limit = hit if hit < len(tiers) else len(hashes)
        return _Plan(hit, limit, tiers[:hit], range(worth, len(tiers)))

    def _worth(self, tiers: Sequence[TierKind], wanted: Wanted) -> int:
        """How many of these leading blocks are cheaper to load than to compute."""
        if self._planner is None:
            return len(tiers)
        layout, block_bytes = self._groups[0].layout, self._block_bytes
        size = layout.block_size_tokens
        offer = Offer(tiers, block_bytes, size, wanted.first_block, wanted.num_tokens)
        return self._planner.blocks_to_load(offer, self._clock())

    @property
    def _block_bytes(self) -> int:
        return sum(group.layout.block_bytes for group in self._groups)

    def _num_trailing(self, fetch: _Fetch, window: int, end: int) -> int:
        """See `store_hits.Trailing`: of the keys in reverse order, as many lead."""
        group = self._trailing[window]
        hashes = fetch.wanted.hashes[self._first(group, end) : end]
        return len(self._match(fetch, group, hashes[::-1]))

    def _match(self, fetch: _Fetch, group: int, hashes: Sequence[BlockHash]) -> Sequence[TierKind]:
        keys, left_s = self._keys(group, hashes), fetch.deadline.remaining_s()
        return fetch.client.match(keys, remote=True, deadline_s=left_s).tiers

    def _load(self, fetch: _Fetch, plan: _Plan) -> _Loaded:
        started_s = self._clock()
        with ExitStack() as leases:
            lease = partial(self._lease, leases, fetch)
            runs = [lease(i, self._first(i, plan.num_known), plan.limit) for i in self._leading]
            if any(run.is_late for run in runs):
                self._observe_late(plan, self._clock() - started_s)
            end = min(run.end for run in runs)
            runs += [lease(i, self._first(i, end), end) for i in self._trailing]
            usable = min(run.end for run in runs)
            if usable < end or any(run.first > self._first(run.group, end) for run in runs):
                return _Loaded(num_left=usable, told=_told(runs))
            copies = [self._copy(fetch, run, end) for run in runs]
            if not any(run.streams or run.is_late for run in runs):
                self._observe(copies, self._clock() - started_s)
            told = _told(runs)
        return replace(self._outcome(copies, end), told=told)

    def _lease(
        self, leases: ExitStack, fetch: _Fetch, group: int, first: int, end: int
    ) -> LeasedRun:
        keys = self._keys(group, fetch.wanted.hashes[first:end])
        left_s = fetch.deadline.remaining_s()
        lease = fetch.client.acquire(keys, streaming=True, deadline_s=left_s)
        return LeasedRun(leases.enter_context(lease), group, first)

    def _copy(self, fetch: _Fetch, run: LeasedRun, end: int) -> _Copied:
        first = self._first(run.group, end)
        block_ids = fetch.wanted.block_ids[run.group][: end - first]
        cache = self._caches[run.group]
        return _Copied(run.group, first, run.copy(cache, first, block_ids, fetch.deadline))

    def _outcome(self, copies: Sequence[_Copied], end: int) -> _Loaded:
        """All of it; of groups without a window also a part. Else the windows are others."""
        reached = min(copied.end for copied in copies)
        if reached < end and self._has_windows:
            return _Loaded(num_left=reached)
        return _Loaded(_tiers(copies, reached))

    def _observe(self, copies: Sequence[_Copied], took_s: float) -> None:
        loaded_bytes: Counter[TierKind] = Counter()
        for copied in copies:
            for tier in copied.tiers:
                loaded_bytes[tier] += self._groups[copied.group].layout.block_bytes
        if self._planner is not None and loaded_bytes:
            self._planner.observe_load(loaded_bytes, took_s, self._clock())

    def _observe_late(self, plan: _Plan, took_s: float) -> None:
        """All that was planned takes at least as long as was waited for it."""
        loaded_bytes = {
            tier: count * self._block_bytes for tier, count in Counter(plan.tiers).items()
        }
        if self._planner is not None and loaded_bytes:
            self._planner.observe_load(loaded_bytes, took_s, self._clock())

    def _first(self, group: int, end: int) -> int:
        return self._groups[group].first_block(end)

    def _keys(self, group: int, hashes: Sequence[BlockHash]) -> BlockKeys:
        return BlockKeys(self._groups[group].layout.fingerprint, hashes)


def _tiers(copies: Sequence[_Copied], end: int) -> Sequence[TierKind]:
    """The slowest of each block. What lies before all windows is not loaded: it counts as if it had
    come from where the windows begin."""
    tiers, tier = [], TierKind.HOST
    for block in reversed(range(end)):
        loaded = [one.tiers[block - one.first] for one in copies if block >= one.first]
        tier = max(loaded, default=tier)
        tiers.append(tier)
    return tiers[::-1]


def _told(runs: Sequence[LeasedRun]) -> dict[int, MissReason]:
    """Of a block that several groups miss, what the last one says."""
    return {run.first + index: reason for run in runs for index, reason in run.lease.misses.items()}
