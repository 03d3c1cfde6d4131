"""Block tables: which device blocks hold which request, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockHash
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.pool import BlockPool
from model_runner.store import BlockRun, Wanted
from model_runner.types import Request


class BlockTables:
    """Implements `Blocks` on a `BlockPool`. Pure; owned by the engine's thread.

    ```
    block_table:  [ named: hits, or computed and full ][ filled now ][ room ]
                    0 .. num_named                      num_computed   len
    ```
    A hit never covers the last token: at least one token is computed, for its logits. Whoever wants
    the logits of its whole prompt (`reads_cache` is false) gets no hits; its blocks are named.
    With `asks_store`, an admitted request that may find more in the store is marked `loading`;
    `take_admitted` hands it to the engine, and `loaded` tells how it went. The full blocks of a
    preempted one stay held until the engine, which gets them from `take_preempted`, gives them
    back with `left`.
    """

    def __init__(self, pool: BlockPool, block_size_tokens: int, *, asks_store: bool) -> None:
        self._pool = pool
        self._block_size = block_size_tokens
        self._asks_store = asks_store
        self._admitted: list[Request] = []
        self._preempted: list[BlockRun] = []
        self._num_leaving = 0

    @property
    def num_leaving(self) -> int:
        return self._num_leaving

    def admit(self, request: Request, *, spare_blocks: int = 0) -> bool:
        assert not request.block_table
        self._extend_hashes(request)
        wanted = request.block_hashes[: self._num_usable(request)]
        hits = self._pool.match(wanted)
        missing = self._blocks_for(len(request)) - len(hits)
        if missing + spare_blocks > self._pool.num_free:
            self._pool.release(hits)
            return False
        request.block_table = [*hits, *self._pool.allocate(missing)]
        request.loading = self._asks_store and len(hits) < len(wanted)
        self._note_hits(request, [TierKind.DEVICE] * len(hits))
        self._admitted.append(request)
        return True

    def extend(self, request: Request) -> bool:
        missing = self._blocks_for(len(request)) - len(request.block_table)
        if missing > self._pool.num_free:
            return False
        if missing > 0:
            request.block_table += self._pool.allocate(missing)
        return True

    def growth(self, request: Request) -> int:
        longest = self._blocks_for(request.num_prompt_tokens + request.sampling.max_tokens)
        return longest - self._blocks_for(len(request))

    def preempt(self, request: Request) -> None:
        run = self._still_named(request) if self._asks_store else BlockRun([], [])
        self._num_leaving += len(run.block_ids)
        self._preempted.append(run)
        self.release(request)
        request.num_preemptions += 1

    def take_preempted(self) -> list[BlockRun]:
        """Of each request preempted since the last call, the full blocks: give them to the store,
        and then to `left`."""
        preempted, self._preempted = self._preempted, []
        return preempted

    def left(self, block_ids: Sequence[int]) -> None:
        """The store has copied these blocks of preempted requests, or gave them up."""
        self._num_leaving -= len(block_ids)
        self._pool.release(block_ids)

    def release(self, request: Request) -> None:
        """Empty the block table; nothing of the request counts as computed any more."""
        assert not request.loading
        self._pool.release(request.block_table)
        request.block_table = []
        request.num_computed = request.num_named = 0

    def take_admitted(self) -> list[Request]:
        """Requests admitted since the last call."""
        admitted, self._admitted = self._admitted, []
        return admitted

    def loaded(self, request: Request, tiers: Sequence[TierKind]) -> None:
        """The store filled the `len(tiers)` blocks after the device hits."""
        assert request.loading
        request.loading = False
        first = request.num_named
        self._note_hits(request, tiers)
        part = slice(first, request.num_named)
        self._pool.name(request.block_table[part], request.block_hashes[part])

    def wanted(self, request: Request) -> Wanted:
        """What the store may have of an admitted request, and the blocks to put it in."""
        part = slice(request.num_named, self._num_usable(request))
        return Wanted(
            request.block_hashes[part],
            [request.block_table[part]],
            first_block=request.num_named,
            num_tokens=len(request),
        )

    def hits(self, request: Request) -> BlockRun:
        """The named blocks, with a reference on each for the caller to release."""
        return self._hold(request.block_hashes[: request.num_named])

    def complete(self, request: Request) -> BlockRun:
        """Name the blocks that became full; with a reference on each for the caller to release."""
        if request.bypass_cache:
            return BlockRun([], [])
        self._extend_hashes(request)
        part = slice(request.num_named, request.num_computed // self._block_size)
        hashes = request.block_hashes[part]
        self._pool.name(request.block_table[part], hashes)
        request.num_named = part.stop
        return self._hold(hashes)

    def _still_named(self, request: Request) -> BlockRun:
        """As `hits`. Where two requests computed one block, the name stayed with the other's, which
        may be evicted by now: then it is this one's."""
        part = slice(request.num_named)
        self._pool.name(request.block_table[part], request.block_hashes[part])
        return self.hits(request)

    def _hold(self, hashes: Sequence[BlockHash]) -> BlockRun:
        block_ids = self._pool.match(hashes)
        assert len(block_ids) == len(hashes)
        return BlockRun(hashes, block_ids)

    def prefix(self, request: Request) -> BlockHash | None:
        """What another one's KV could be used of, by the hash of its last block."""
        self._extend_hashes(request)
        usable = self._num_usable(request)
        return request.block_hashes[usable - 1] if usable else None

    def _num_usable(self, request: Request) -> int:
        if not request.reads_cache:
            return 0
        return min((len(request) - 1) // self._block_size, len(request.block_hashes))

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _extend_hashes(self, request: Request) -> None:
        known = len(request.block_hashes)
        if request.bypass_cache or len(request) // self._block_size == known:
            return
        request.block_hashes += block_hashes(
            request.identity_root,
            request.token_ids[known * self._block_size :],
            self._block_size,
            parent=request.block_hashes[-1] if known else None,
        )

    def _note_hits(self, request: Request, tiers: Sequence[TierKind]) -> None:
        """Note that the next blocks are there. What a preempted request finds again is no hit."""
        for tier in tiers:
            start = request.num_computed
            request.num_computed += self._block_size
            request.num_named += 1
            hit = min(request.num_computed, request.num_prompt_tokens) - start
            if hit > 0 and request.num_preemptions == 0:
                request.hit_tokens[tier] = request.hit_tokens.get(tier, 0) + hit
