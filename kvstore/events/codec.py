"""Block events between their wire form and the verbs of an `EventSink`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import DecodeError

from kvstore.core.errors import ProtocolError
from kvstore.core.ids import (
    BLOCK_HASH_BYTES,
    FINGERPRINT_BYTES,
    BlockKeys,
    LayoutFingerprint,
    pack_hashes,
    unpack_hashes,
)
from kvstore.events.base import EventSink
from kvstore.tiers.base import TierKind
from kvstore.wire.v1 import block_pb2, event_pb2

MAX_EVENT_HASHES = 8192
"""A longer run of keys is split, so that no message grows past 256 KiB."""

MAX_MESSAGE_BYTES = 1 << 20
"""A subscriber drops larger messages unread."""

M = TypeVar("M", event_pb2.EventBatch, event_pb2.ReplayResponse)

_TO_WIRE = {
    TierKind.DEVICE: block_pb2.TIER_DEVICE,
    TierKind.HOST: block_pb2.TIER_HOST,
    TierKind.DISK: block_pb2.TIER_DISK,
}


def stored_events(tier: TierKind, keys: BlockKeys) -> Iterator[event_pb2.BlockEvent]:
    for packed in _split(keys):
        stored = event_pb2.BlocksStored(tier=_TO_WIRE[tier], keys=packed)
        yield event_pb2.BlockEvent(stored=stored)


def removed_events(tier: TierKind, keys: BlockKeys) -> Iterator[event_pb2.BlockEvent]:
    for packed in _split(keys):
        removed = event_pb2.BlocksRemoved(tier=_TO_WIRE[tier], keys=packed)
        yield event_pb2.BlockEvent(removed=removed)


def cleared_event(tier: TierKind) -> event_pb2.BlockEvent:
    return event_pb2.BlockEvent(cleared=event_pb2.TierCleared(tier=_TO_WIRE[tier]))


def group(events: Iterable[event_pb2.BlockEvent]) -> Iterator[list[event_pb2.BlockEvent]]:
    """Runs of events, each small enough for one message; in order, none empty."""
    part: list[event_pb2.BlockEvent] = []
    size = 0
    for event in events:
        event_bytes = event.ByteSize()
        if part and size + event_bytes > MAX_EVENT_HASHES * BLOCK_HASH_BYTES:
            yield part
            part, size = [], 0
        part.append(event)
        size += event_bytes
    if part:
        yield part


def parse(kind: type[M], packed: bytes) -> M:
    """A message whose events can all be delivered. Raises ProtocolError."""
    try:
        message = kind.FromString(packed)
    except DecodeError as error:
        raise ProtocolError("not a message of the event plane") from error
    check(message.events)
    return message


def check(events: Iterable[event_pb2.BlockEvent]) -> None:
    """Raises ProtocolError if any event cannot be used, so that nothing is half applied."""
    for event in events:
        match event.WhichOneof("event"):
            case "stored":
                _check_tier(event.stored.tier)
                _check_keys(event.stored.keys)
            case "removed":
                _check_tier(event.removed.tier)
                _check_keys(event.removed.keys)
            case "cleared":
                _check_tier(event.cleared.tier)
            case _:
                raise ProtocolError("block event of an unknown kind; run one version everywhere")


def deliver(events: Iterable[event_pb2.BlockEvent], sink: EventSink) -> None:
    """Call the verb of each event, in order. The events have passed `check`."""
    for event in events:
        match event.WhichOneof("event"):
            case "stored":
                sink.stored(TierKind(event.stored.tier), _unpack(event.stored.keys))
            case "removed":
                sink.removed(TierKind(event.removed.tier), _unpack(event.removed.keys))
            case _:
                sink.cleared(TierKind(event.cleared.tier))


def _split(keys: BlockKeys) -> Iterator[block_pb2.BlockKeys]:
    for start in range(0, len(keys), MAX_EVENT_HASHES):
        part = keys.hashes[start : start + MAX_EVENT_HASHES]
        yield block_pb2.BlockKeys(layout_fingerprint=keys.layout, block_hashes=pack_hashes(part))


def _unpack(keys: block_pb2.BlockKeys) -> BlockKeys:
    return BlockKeys(LayoutFingerprint(keys.layout_fingerprint), unpack_hashes(keys.block_hashes))


def _check_tier(tier: int) -> None:
    if tier not in _TO_WIRE:
        raise ProtocolError(f"block event of tier {tier}; only device, host and disk hold blocks")


def _check_keys(keys: block_pb2.BlockKeys) -> None:
    if len(keys.layout_fingerprint) != FINGERPRINT_BYTES:
        raise ProtocolError(f"layout fingerprint of {len(keys.layout_fingerprint)} bytes")
    if len(keys.block_hashes) % BLOCK_HASH_BYTES:
        raise ProtocolError(f"block hashes of {len(keys.block_hashes)} bytes")
