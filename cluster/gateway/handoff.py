"""What is left of a prefill call when its first token is out: the publishing of its blocks."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from cluster.gateway.channels import Chunks
from cluster.wire.v1 import conductor_pb2 as conductor

_LOG = logging.getLogger(__name__)

PUBLISH_WAIT_S = 5.0
"""Longest wait for a prompt's blocks to be published. After it the decode worker computes what it
does not find."""


def share_node(prefill: conductor.Member, decode: conductor.Member) -> bool:
    """Then blocks that are being published can be read as they come, and nobody need wait."""
    return bool(prefill.node_id) and prefill.node_id == decode.node_id


class Publishing:
    """Listens to a prefill worker until its blocks are published, in a task of its own: to close
    the call could end the publishing. Owns the call, and belongs to one event loop."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._task = asyncio.create_task(_until_published(chunks))

    async def over(self) -> None:
        """Until it is, within PUBLISH_WAIT_S from the start. Raises what the worker raised."""
        await self._task

    async def cancel(self) -> None:
        """Close the call. Idempotent, without effect once it is over, and never raises what the
        worker raised."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # whoever waited has heard it
        await self._chunks.aclose()


async def _until_published(chunks: Chunks) -> None:
    try:
        async with aclosing(chunks), asyncio.timeout(PUBLISH_WAIT_S):
            async for chunk in chunks:
                if chunk.published:
                    return
    except TimeoutError:
        _LOG.warning("a prompt was not published within %s s; decoding without", PUBLISH_WAIT_S)
