"""How disk work in flight ends when its node stops."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

END_S = 5.0
"""Longest wait for calls that the disk has begun, when all else has ended."""


async def end_disk_work(tasks: Collection[asyncio.Task[None]]) -> None:
    """Wait for `tasks`, whose threads cannot be called back; cancel those that a hanging disk holds
    up. Their threads may still touch the memory they were given: it must get no other use."""
    if not tasks:
        return
    _, hanging = await asyncio.wait(tasks, timeout=END_S)
    for task in hanging:
        task.cancel()
    if hanging:
        await asyncio.wait(hanging)
