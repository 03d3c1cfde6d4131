"""Block tables: which device blocks hold which request, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockHash
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.pool import BlockPool
from model_runner.group_blocks import GroupBlocks, longest_hit
from model_runner.kv_groups import KVGroup
from model_runner.store import BlockRun, Wanted
from model_runner.types import Request


class BlockTables:
    """Implements `Blocks` on a `BlockPool` for each KV group. Pure; owned by the engine's thread.

    ```
     blocks of the sequence   [ named: hits, or computed and full ][ filled now ][ room ]
                              0 .. num_named                       num_computed
     table, full attention    [--------------------------------------------------------]
     table, with a window                            [---------------------------------]
    ```
    A hit never covers the last token: at least one token is computed, for its logits. Whoever wants
    the logits of its whole prompt (`reads_cache` is false) gets no hits; its blocks are named.
    A hit is as long as all groups have what a token after it sees. Blocks that the window has left
    are given back when they are full and named, and found until they are evicted.
    With `asks_store`, an admitted request that may find more in the store is marked `loading`;
    `take_admitted` hands it to the engine, and `loaded` tells how it went. The full blocks of a
    preempted one stay held until the engine, which gets them from `take_preempted`, gives them
    back with `left`.
    """

    def __init__(
        self, groups: Sequence[KVGroup], pools: Sequence[BlockPool], *, asks_store: bool
    ) -> None:
        self._groups = [
            GroupBlocks(number, group, pool)
            for number, (group, pool) in enumerate(zip(groups, pools, strict=True))
        ]
        self.block_size_tokens = groups[0].layout.block_size_tokens
        self._asks_store = asks_store
        self._admitted: list[Request] = []
        self._preempted: list[Sequence[BlockRun]] = []
        self._num_leaving = 0

    @property
    def num_leaving(self) -> int:
        return self._num_leaving

    def admit(self, request: Request, *, spare_blocks: int = 0) -> bool:
        assert not request.block_tables
        self._extend_hashes(request)
        num_usable = self._num_usable(request)
        num_hits = longest_hit(self._groups, request.block_hashes, num_usable)
        num_blocks = self._blocks_for(len(request))
        for group in self._groups:
            spare = spare_blocks if group.number == 0 else 0
            table = group.take(request.block_hashes, num_hits, num_blocks, spare)
            if table is None:
                self._give_up_tables(request)
                return False
            request.block_tables.append(table)
        request.loading = self._asks_store and num_hits < num_usable
        self._note_hits(request, [TierKind.DEVICE] * num_hits)
        self._admitted.append(request)
        return True

    def extend(self, request: Request, num_tokens: int) -> int:
        start = request.num_computed
        if start + num_tokens <= self.block_size_tokens * min(
            one.end for one in request.block_tables
        ):
            return num_tokens
        pairs = list(zip(self._groups, request.block_tables, strict=True))
        end_of_room = min(group.end_of_room(table) for group, table in pairs)
        num_tokens = min(num_tokens, end_of_room * self.block_size_tokens - start)
        if num_tokens <= 0:
            return 0
        for group, table in pairs:
            group.extend(table, self._blocks_for(start + num_tokens))
        return num_tokens

    def growth(self, request: Request) -> int:
        longest = self._blocks_for(request.num_prompt_tokens + request.sampling.max_tokens)
        return self._groups[0].growth(self._blocks_for(len(request)), longest)

    def preempt(self, request: Request) -> None:
        runs = self.hits(request) if self._asks_store else []
        self._num_leaving += sum(len(run.block_ids) for run in runs)
        self._preempted.append(runs)
        self.release(request)
        request.num_preemptions += 1

    def take_preempted(self) -> list[Sequence[BlockRun]]:
        """Of each request preempted since the last call, the full blocks: give them to the store,
        and then to `left`."""
        preempted, self._preempted = self._preempted, []
        return preempted

    def left(self, runs: Sequence[BlockRun]) -> None:
        """The store has copied these blocks of preempted requests, or gave them up."""
        self._num_leaving -= sum(len(run.block_ids) for run in runs)
        self.give_back(runs)

    def give_back(self, runs: Sequence[BlockRun]) -> None:
        """Release the references that came with these runs."""
        for run in runs:
            self._groups[run.group].pool.release(run.block_ids)

    def release(self, request: Request) -> None:
        """Empty the block tables; nothing of the request counts as computed any more."""
        assert not request.loading
        self._give_up_tables(request)
        request.num_computed = request.num_named = 0

    def take_admitted(self) -> list[Request]:
        """Requests admitted since the last call."""
        admitted, self._admitted = self._admitted, []
        return admitted

    def loaded(self, request: Request, tiers: Sequence[TierKind]) -> None:
        """The store filled the `len(tiers)` blocks after the device hits, or what a window shows of
        them."""
        assert request.loading
        request.loading = False
        first = request.num_named
        self._note_hits(request, tiers)
        for group, table in zip(self._groups, request.block_tables, strict=True):
            here = group.loaded(table, first, request.num_named)
            named = group.name(table, request.block_hashes, here, request.num_named)
            self.give_back([named])
            group.drop_behind_window(table, request.num_computed)

    def wanted(self, request: Request) -> Wanted:
        """What the store may have of an admitted request, and the blocks to put it in."""
        first, end = request.num_named, self._num_usable(request)
        return Wanted(
            request.block_hashes[first:end],
            [
                group.targets(table, first, end)
                for group, table in zip(self._groups, request.block_tables, strict=True)
            ],
            first_block=first,
            num_tokens=len(request),
        )

    def hits(self, request: Request) -> list[BlockRun]:
        """The named blocks, with a reference on each for the caller to release.

        Where two requests computed one block, the name stayed with the other's, which may be
        evicted by now: then it is this one's.
        """
        return self._name(request, 0)

    def completing(self, request: Request, num_tokens: int) -> list[BlockRun]:
        """The blocks that the next `num_tokens` tokens make full, with a reference on each for the
        caller to release. They are named when that is done: see `complete`."""
        if request.bypass_cache:
            return []
        self._extend_hashes(request)
        first, end = (
            request.num_named,
            (request.num_computed + num_tokens) // self.block_size_tokens,
        )
        return [
            group.completing(table, request.block_hashes, first, end)
            for group, table in zip(self._groups, request.block_tables, strict=True)
        ]

    def complete(self, request: Request) -> list[BlockRun]:
        """Name the blocks that became full, with a reference on each for the caller to release, and
        give back those that the window has left."""
        runs = []
        num_full = request.num_computed // self.block_size_tokens
        if num_full > request.num_named and not request.bypass_cache:
            self._extend_hashes(request)
            first, request.num_named = request.num_named, num_full
            runs = self._name(request, first)
        for group, table in zip(self._groups, request.block_tables, strict=True):
            group.drop_behind_window(table, request.num_computed)
        return runs

    def prefix(self, request: Request) -> BlockHash | None:
        """What another one's KV could be used of, by the hash of its last block."""
        self._extend_hashes(request)
        usable = self._num_usable(request)
        return request.block_hashes[usable - 1] if usable else None

    def _name(self, request: Request, first: int) -> list[BlockRun]:
        return [
            group.name(table, request.block_hashes, first, request.num_named)
            for group, table in zip(self._groups, request.block_tables, strict=True)
        ]

    def _give_up_tables(self, request: Request) -> None:
        for group, table in zip(self._groups, request.block_tables, strict=False):
            group.give_up(table)
        request.block_tables = []

    def _num_usable(self, request: Request) -> int:
        if not request.reads_cache:
            return 0
        return min((len(request) - 1) // self.block_size_tokens, len(request.block_hashes))

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size_tokens)

    def _extend_hashes(self, request: Request) -> None:
        known = len(request.block_hashes)
        if request.bypass_cache or len(request) // self.block_size_tokens == known:
            return
        request.block_hashes += block_hashes(
            request.identity_root,
            request.token_ids[known * self.block_size_tokens :],
            self.block_size_tokens,
            parent=request.block_hashes[-1] if known else None,
        )

    def _note_hits(self, request: Request, tiers: Sequence[TierKind]) -> None:
        """Note that the next blocks are there. What a preempted request finds again is no hit."""
        for tier in tiers:
            start = request.num_computed
            request.num_computed += self.block_size_tokens
            request.num_named += 1
            hit = min(request.num_computed, request.num_prompt_tokens) - start
            if hit > 0 and request.num_preemptions == 0:
                request.hit_tokens[tier] = request.hit_tokens.get(tier, 0) + hit
