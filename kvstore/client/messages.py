"""What clients say, as messages."""

from __future__ import annotations

from kvstore.core.ids import BlockKeys, pack_hashes
from kvstore.wire.v1 import block_pb2

WAIT_SHARE = 0.8
"""Part of a verb's deadline that the node may wait; the rest is for the answer to come back."""


def wait_ms(deadline_s: float) -> int:
    return max(int(deadline_s * WAIT_SHARE * 1000), 0)


def keys_message(keys: BlockKeys) -> block_pb2.BlockKeys:
    return block_pb2.BlockKeys(
        layout_fingerprint=keys.layout, block_hashes=pack_hashes(keys.hashes)
    )
