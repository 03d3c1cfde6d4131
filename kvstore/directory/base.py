"""Which member holds which block: the store-wide view, soft state rebuilt from block events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvstore.core.ids import BlockKeys, MemberId
from kvstore.tiers.base import TierKind


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a block."""

    publisher: MemberId
    """The node, or the worker for its device tier."""
    tier: TierKind


class Directory(Protocol):
    """Block key → replicas. `kvstore.testing.directory_conformance` is its test suite.

    An answer is a hint: a replica may be gone when it is asked for, and one may exist that is not
    told yet. Verbs are idempotent; those about one publisher take effect in the order of the calls.
    Threads: one event loop. Failure: an implementation with a server behind it raises
    UnavailableError or DeadlineExceededError; the caller goes on without remote replicas.
    """

    async def stored(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None: ...

    async def removed(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None: ...

    async def cleared(self, publisher: MemberId, tier: TierKind) -> None: ...

    async def forget(self, publisher: MemberId) -> None:
        """It is gone, or starts anew: drop all its replicas."""

    async def locate(self, keys: BlockKeys) -> list[Sequence[Replica]]:
        """The replicas of each key, fastest tier first; empty where none is known."""

    async def longest_prefix(self, keys: BlockKeys) -> int:
        """How many leading keys have a replica somewhere."""
