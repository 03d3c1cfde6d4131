"""Asking a node who it is."""

from __future__ import annotations

import asyncio

from kvstore.client.endpoint import open_channel
from kvstore.directory.base import NodeRecord
from kvstore.directory.records import from_wire
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.wire.v1 import node_pb2


async def describe(
    endpoint: str, deadline_s: float, *, keys: ClientKeys = NO_CLIENT_KEYS
) -> NodeRecord:
    """Over a channel of its own, open for this call only.

    Raises ConfigurationError for an endpoint that is none, UnavailableError,
    DeadlineExceededError, or what the node answered.
    """
    channel = open_channel(endpoint, keys)
    try:
        response = await channel.call(
            "Describe",
            node_pb2.DescribeRequest(),
            node_pb2.DescribeResponse,
            deadline_s=deadline_s,
        )
    finally:
        # Also when this is cancelled: a channel half closed would leak its sockets.
        await asyncio.shield(asyncio.ensure_future(channel.close()))
    return from_wire(response.node)
