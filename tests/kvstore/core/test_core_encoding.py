from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.encoding import encode_fields

FIELD = st.one_of(st.text(max_size=6), st.integers(), st.binary(max_size=6))
RECORD = st.tuples(st.text(max_size=4), st.lists(FIELD, max_size=4))


def typed(record: tuple[str, list]) -> list[tuple[type, object]]:
    domain, values = record
    return [(type(value), value) for value in (domain, *values)]


def decode(data: bytes) -> list[tuple[type, object]]:
    """An inverse: where there is one, no two records can share their bytes."""
    read = {b"s": (str, bytes.decode), b"i": (int, int), b"b": (bytes, bytes)}
    values: list[tuple[type, object]] = []
    while data:
        kind, length = read[data[:1]], int.from_bytes(data[1:9], "little")
        content, data = data[9 : 9 + length], data[9 + length :]
        assert len(content) == length
        values.append((kind[0], kind[1](content)))
    return values


@given(RECORD)
def test_what_was_encoded_can_be_read_back(record: tuple[str, list]) -> None:
    assert decode(encode_fields(record[0], *record[1])) == typed(record)


@given(RECORD, RECORD)
def test_different_fields_have_different_bytes(
    first: tuple[str, list], second: tuple[str, list]
) -> None:
    same = typed(first) == typed(second)
    assert (encode_fields(first[0], *first[1]) == encode_fields(second[0], *second[1])) == same


def test_boundaries_types_and_domains_count() -> None:
    records = [
        encode_fields("d", "ab", "c"),
        encode_fields("d", "a", "bc"),
        encode_fields("d", "abc"),
        encode_fields("d", "abc", ""),
        encode_fields("dabc"),
        encode_fields("d", 1),
        encode_fields("d", "1"),
        encode_fields("d", b"1"),
        encode_fields("e", b"1"),
    ]
    assert len(set(records)) == len(records)
