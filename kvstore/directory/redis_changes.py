"""What changes in a directory, in the form in which it travels to Redis. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from kvstore.core.ids import BLOCK_HASH_BYTES, BlockKeys, LayoutFingerprint, pack_hashes
from kvstore.tiers.base import TierKind
from kvstore.wire.v1.event_pb2 import BlockEvent

CHUNK_BYTES = 1024 * BLOCK_HASH_BYTES
"""One script visits this many at most: 1 to 2 ms, in which Redis serves nobody else."""


class Verb(Enum):
    STORED = auto()
    REMOVED = auto()
    CLEARED = auto()


@dataclass(frozen=True, slots=True)
class Change:
    """One verb for some blocks of one layout; for a whole tier where it is `CLEARED`."""

    verb: Verb
    tier: TierKind
    layout: LayoutFingerprint
    hashes: bytes
    """n x 32 bytes."""


def of_keys(verb: Verb, tier: TierKind, keys: BlockKeys) -> Change:
    return Change(verb, tier, keys.layout, pack_hashes(keys.hashes))


def clearing(tier: TierKind) -> Change:
    return Change(Verb.CLEARED, tier, LayoutFingerprint(b""), b"")


def of_events(events: Iterable[BlockEvent]) -> Iterator[Change]:
    """In order, neighbours of one kind joined: many small events make few large changes."""
    joined: Change | None = None
    parts: list[bytes] = []
    for change in map(_of_event, events):
        if joined is not None and _joins(joined, change):
            parts.append(change.hashes)
            continue
        if joined is not None:
            yield _with_hashes(joined, parts)
        joined, parts = change, [change.hashes]
    if joined is not None:
        yield _with_hashes(joined, parts)


def split(changes: Iterable[Change]) -> Iterator[Change]:
    """The same changes, each of one chunk at most."""
    for change in changes:
        if change.verb is Verb.CLEARED:
            yield change
        for start in range(0, len(change.hashes), CHUNK_BYTES):
            yield _with_hashes(change, [change.hashes[start : start + CHUNK_BYTES]])


def _of_event(event: BlockEvent) -> Change:
    match event.WhichOneof("event"):
        case "stored":
            verb, tier, keys = Verb.STORED, event.stored.tier, event.stored.keys
        case "removed":
            verb, tier, keys = Verb.REMOVED, event.removed.tier, event.removed.keys
        case _:
            return clearing(TierKind(event.cleared.tier))
    layout = LayoutFingerprint(keys.layout_fingerprint)
    return Change(verb, TierKind(tier), layout, keys.block_hashes)


def _joins(one: Change, other: Change) -> bool:
    same = (one.verb, one.tier, one.layout) == (other.verb, other.tier, other.layout)
    return same and one.verb is not Verb.CLEARED


def _with_hashes(change: Change, parts: list[bytes]) -> Change:
    return Change(change.verb, change.tier, change.layout, b"".join(parts))
