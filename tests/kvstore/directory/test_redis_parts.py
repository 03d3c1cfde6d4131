"""The pure parts of the directory in Redis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import ProtocolError
from kvstore.core.ids import BLOCK_HASH_BYTES, LayoutFingerprint, MemberId, NodeId
from kvstore.directory import records
from kvstore.directory.base import NodeRecord, Replica
from kvstore.directory.redis_changes import (
    CHUNK_BYTES,
    Change,
    Verb,
    clearing,
    of_events,
    split,
)
from kvstore.directory.redis_holders import Holders, field_of
from kvstore.events import codec
from kvstore.testing.view_conformance import keys
from kvstore.tiers.base import TierKind
from kvstore.wire.v1 import node_pb2

HOST, DISK = TierKind.HOST, TierKind.DISK
A, B = MemberId("node-a"), MemberId("node-b")
LAYOUTS = [LayoutFingerprint(letter * 16) for letter in (b"l", b"m")]

changes = st.lists(
    st.builds(
        Change,
        st.sampled_from([Verb.STORED, Verb.REMOVED]),
        st.sampled_from([HOST, DISK]),
        st.sampled_from(LAYOUTS),
        st.sampled_from([b"1" * 32, b"2" * 64, b"3" * (CHUNK_BYTES + 32)]),
    )
    | st.builds(clearing, st.sampled_from([HOST, DISK]))
)


def steps(of: list[Change]) -> list[tuple[Verb, TierKind, bytes, bytes]]:
    """One for each block, so that it does not matter how changes are cut."""
    singles = []
    for change in of:
        hashes = [change.hashes[i : i + 32] for i in range(0, len(change.hashes), 32)]
        singles += [(change.verb, change.tier, bytes(change.layout), h) for h in hashes or [b""]]
    return singles


@given(changes)
def test_split_changes_mean_the_same_and_are_small(script: list[Change]) -> None:
    parts = list(split(script))
    assert steps(parts) == steps(script)
    assert all(len(part.hashes) <= CHUNK_BYTES for part in parts)


def test_neighbours_of_one_kind_are_joined_in_order() -> None:
    events = [
        *codec.stored_events(HOST, keys(0, 2)),
        *codec.stored_events(HOST, keys(2, 3)),
        *codec.stored_events(DISK, keys(0, 1)),
        *codec.removed_events(DISK, keys(0, 1)),
        *codec.removed_events(DISK, keys(1, 2)),
        codec.cleared_event(HOST),
        codec.cleared_event(HOST),
        *codec.stored_events(HOST, keys(0, 1)),
    ]
    joined = list(of_events(events))
    sizes = [(c.verb, c.tier, len(c.hashes) // BLOCK_HASH_BYTES) for c in joined]
    assert sizes == [
        (Verb.STORED, HOST, 3),
        (Verb.STORED, DISK, 1),
        (Verb.REMOVED, DISK, 2),
        (Verb.CLEARED, HOST, 0),
        (Verb.CLEARED, HOST, 0),
        (Verb.STORED, HOST, 1),
    ]
    assert joined[0].hashes == b"".join(keys(0, 3).hashes)
    assert list(of_events([])) == []


def test_holders_decode_known_numbers_fastest_first() -> None:
    table = [field_of(B, DISK), b"0001", field_of(A, HOST), b"0002", field_of(B, HOST), b"0003"]
    holders = Holders(b"v", table)
    found = b"\x00" + b"\x0c000100030002" + b"\x04dead" + b"\x0c000100030002"
    located = holders.decode(found)
    everywhere = (Replica(A, HOST), Replica(B, HOST), Replica(B, DISK))
    assert located == [(), everywhere, (), everywhere]
    assert located[1] is located[3]


@pytest.mark.parametrize("table", [[b"2node"], [b"", b"0001"], [b"9node", b"1"], [b"2\xff", b"1"]])
def test_a_table_that_cannot_be_read_is_refused(table: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        Holders(b"v", table)


def test_records_survive_the_wire() -> None:
    record = NodeRecord(NodeId("n"), 2**63, "h", "ipc:///z", "g:1", "tcp://e:2", "tcp://r:3")
    assert records.from_wire(records.to_wire(record)) == record
    assert records.parse(records.to_wire(record).SerializeToString()) == record


@pytest.mark.parametrize(
    "packed",
    [b"", b"\xff\xff", node_pb2.NodeRecord(node_id="n").SerializeToString()],
)
def test_a_record_that_names_no_node_is_refused(packed: bytes) -> None:
    with pytest.raises(ProtocolError):
        records.parse(packed)
