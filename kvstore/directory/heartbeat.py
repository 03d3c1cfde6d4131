"""How fast the views of a cluster notice that a node is gone."""

from __future__ import annotations

from kvstore.events.publisher import HEARTBEAT_S

HEARTBEAT_TIME_S = 4 * HEARTBEAT_S
"""A node that nobody heard of for this long is dead. It speaks every `HEARTBEAT_S`."""
