"""Copies and checksums: in place while they are short, on a thread when they would hold up the
loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from kvstore.core.errors import InvalidArgumentError

A = TypeVar("A")
T = TypeVar("T")

INLINE_BYTES = 256 << 10
"""About 50 us of copying and checksumming: what a hop to a thread and back costs."""


async def run_sized(executor: Executor, size_bytes: int, work: Callable[[A], T], argument: A) -> T:
    if size_bytes <= INLINE_BYTES:
        return work(argument)
    return await asyncio.get_running_loop().run_in_executor(executor, work, argument)


def check_contiguous(name: str, data: memoryview) -> None:
    if not data.c_contiguous:
        raise InvalidArgumentError(f"{name} must be contiguous memory")
