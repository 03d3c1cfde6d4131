"""When a reader computes the checksum of what it read."""

from __future__ import annotations

import platform
from typing import Literal, get_args

from kvstore.core.errors import InvalidArgumentError

Verify = Literal["transfers", "always"]
"""`transfers`: bytes that came over a network (the node itself checks those that cross a tier).
Bytes read from the memory of the same host cross neither: they are fenced by generation, which
nothing but a defect in memory or in another writer can defeat. `always`: those, too."""

_ORDERED = ("x86_64", "AMD64", "i686")
"""Machines on which a generation that is read after the bytes proves them: stores and loads are
seen in program order. Elsewhere the checksum is the fence."""


def effective(verify: Verify, machine: str | None = None) -> Verify:
    """What is done on this machine. Raises InvalidArgumentError for another word."""
    if verify not in get_args(Verify):
        raise InvalidArgumentError(f'verify must be "transfers" or "always", got {verify!r}')
    return verify if (machine or platform.machine()) in _ORDERED else "always"
