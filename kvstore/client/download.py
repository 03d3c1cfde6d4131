"""Leased blocks over the network, for clients that do not map the node's arena."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kvstore.client.deadline import Deadline
from kvstore.core.errors import DeadlineExceededError, KVStoreError, LeaseExpiredError
from kvstore.tiers.base import MissReason
from kvstore.transports.base import BulkChannel, BulkRead

_LOG = logging.getLogger(__name__)


async def download(
    bulk: BulkChannel,
    session_id: int,
    lease_id: int,
    buffers: Sequence[memoryview],
    checksums: Sequence[int],
    deadline: Deadline,
) -> list[memoryview | MissReason]:
    """All blocks of a lease into `buffers` of their lengths, verified; why not, for those that did
    not come."""
    columns = zip(range(len(buffers)), buffers, checksums, strict=True)
    blocks = [BulkRead(index, buffer, crc) for index, buffer, crc in columns]
    try:
        misses = await bulk.read(session_id, lease_id, blocks, deadline_s=deadline.remaining_s())
    except (LeaseExpiredError, DeadlineExceededError):
        return [MissReason.LATE] * len(blocks)
    except KVStoreError as error:
        _LOG.warning("reading from the node failed: %s", error)
        return [MissReason.FAILED] * len(blocks)
    return [
        buffer.toreadonly() if miss is None else miss
        for buffer, miss in zip(buffers, misses, strict=True)
    ]
