"""The short way to the verbs of a node whose memory this process maps."""

from __future__ import annotations

import logging

from kvstore.client.deadline import Deadline
from kvstore.core.errors import KVStoreError
from kvstore.transports.unix.channel import UnixChannel
from kvstore.wire.v1 import node_pb2

_LOG = logging.getLogger(__name__)

PROBE_S = 0.5


async def open_local(endpoint: str, session_id: int, deadline: Deadline) -> UnixChannel | None:
    """A channel that works, or None: the node offers none, or it cannot be reached from here (a
    container with a network of its own). Raises DeadlineExceededError if no time is left."""
    if not endpoint:
        return None
    channel = UnixChannel(endpoint)
    request = node_pb2.KeepAliveRequest(session_id=session_id)
    probe_s = min(deadline.remaining_s() / 2, PROBE_S)
    try:
        await channel.call("KeepAlive", request, node_pb2.KeepAliveResponse, deadline_s=probe_s)
    except KVStoreError as error:
        _LOG.info("verbs go by the endpoint that was given: %s", error)
    except BaseException:
        await channel.close()
        raise
    else:
        return channel
    await channel.close()
    return None
