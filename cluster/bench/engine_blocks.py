"""Where blocks of prompts lie, as a benchmark arranges it: in the host tier, on disk, elsewhere."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from cluster.bench.engine_setup import BLOCK_SIZE_TOKENS, Prompt
from kvstore.client.sync import SyncClient
from kvstore.core.errors import KVStoreError
from kvstore.core.hashing import block_hashes
from kvstore.core.identity import ModelIdentity
from kvstore.core.ids import BLOCK_HASH_BYTES, BlockHash, BlockKeys
from kvstore.tiers.base import TierKind

_DEADLINE_S = 20.0
_POLL_S = 0.05


class Blocks:
    """Of one model, in one node and in a peer of it that it pulls from."""

    def __init__(self, identity: ModelIdentity, node: SyncClient, peer: SyncClient) -> None:
        self._identity = identity
        self._node = node
        self._peer = peer

    def keys(self, prompt: Prompt) -> BlockKeys:
        hashes = block_hashes(self._identity.root(), prompt, BLOCK_SIZE_TOKENS)
        return BlockKeys(self._identity.layout.fingerprint, hashes)

    def to_host(self, keys: BlockKeys) -> None:
        """See that all of them are in the node's host tier, and the last that leave it."""

        def bring() -> bool:
            self._node.acquire(keys, deadline_s=_DEADLINE_S).release()
            return self._are(keys, TierKind.HOST)

        self._wait("in the host tier", bring)

    def to_disk_only(self, keys: BlockKeys, host_bytes: int) -> None:
        """Push them out of the node's host tier: with other blocks, as life does it."""
        block_bytes = self._identity.layout.block_bytes
        other = [memoryview(bytes(block_bytes))] * (host_bytes // block_bytes // 4)

        def push() -> bool:
            self._node.put(self._unused(len(other)), other, deadline_s=_DEADLINE_S)
            return self._are(keys, TierKind.DISK)

        self._wait("on disk only", push)

    def to_peer_only(self, keys: BlockKeys) -> None:
        """Copy them to the peer unless it has them, and remove the node's."""
        if len(self._peer.match(keys, deadline_s=_DEADLINE_S)) < len(keys.hashes):
            blocks = [bytearray(self._identity.layout.block_bytes) for _ in keys.hashes]
            if self._node.get(keys, blocks, deadline_s=_DEADLINE_S):
                raise KVStoreError("bench engine: the node lost blocks that were just published")
            self._peer.put(keys, blocks, deadline_s=_DEADLINE_S)
        self._node.remove(keys, deadline_s=_DEADLINE_S)
        self._wait("at the peer only", lambda: self._are(keys, TierKind.REMOTE))

    def _are(self, keys: BlockKeys, tier: TierKind) -> bool:
        """All of them, and in no faster tier of the node."""
        found = self._node.match(keys, remote=True, deadline_s=_DEADLINE_S)
        return len(found) == len(keys.hashes) and set(found.tiers) == {tier}

    def _unused(self, count: int) -> BlockKeys:
        """Keys that nobody asks for."""
        hashes = [BlockHash(secrets.token_bytes(BLOCK_HASH_BYTES)) for _ in range(count)]
        return BlockKeys(self._identity.layout.fingerprint, hashes)

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        end_s = time.monotonic() + _DEADLINE_S
        while not is_so():
            if time.monotonic() > end_s:
                raise KVStoreError(f"bench engine: the blocks are not {what} in {_DEADLINE_S:g} s")
            time.sleep(_POLL_S)
