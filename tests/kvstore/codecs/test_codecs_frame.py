"""The header of an encoded block, and what is made of bytes that are none."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.codecs.dtypes import from_float32
from kvstore.codecs.frame import decode_block, encode_block, encoded_bytes, encoded_bytes_max
from kvstore.codecs.header import HEADER_BYTES, header_of, parse_header
from kvstore.codecs.registry import CODECS, CODECS_BY_ID
from kvstore.core.errors import InvalidArgumentError, ProtocolError
from kvstore.core.layout import KVLayout

LAYOUT = KVLayout(2, 2, 16, 40, "bfloat16")


def block(layout=LAYOUT, seed=0):
    values = np.random.default_rng(seed).standard_normal(layout.shape).astype(np.float32)
    return memoryview(from_float32(values, layout.dtype)).cast("B")


def encode(name, data, layout=LAYOUT):
    into = memoryview(bytearray(encoded_bytes_max(CODECS[name], layout)))
    header = encode_block(CODECS[name], data, layout, into)
    return into[: HEADER_BYTES + header.payload_bytes]


@pytest.mark.parametrize("name", list(CODECS))
def test_the_header_says_all_there_is_to_know(name):
    encoded = encode(name, block())
    header = parse_header(encoded)
    assert (CODECS_BY_ID[header.codec].name, header.layout) == (name, LAYOUT)
    assert header.groups == CODECS[name].groups(LAYOUT)
    assert header.payload_bytes == len(encoded) - HEADER_BYTES
    assert header == parse_header(header.encode())


def test_golden_header():
    """The format: changing it needs a new version."""
    assert parse_header(encode("kivi2", block())).encode().hex() == (
        "4b56434f44454300" + "0100" + "04" + "02" + "0000"
        + "1000" + "2000" + "0800"
        + "02000000" + "02000000" + "28000000" + "10000000"
        + "040f000000000000"
        + "00" * 20
    )  # fmt: skip


GOLDEN = {
    "fp8": "ffc999ce3dc14c6c",
    "int8": "fa8849898e5e44c4",
    "int4": "12b0d669a4051883",
    "kivi2": "a6af7cb6c80bb0d0",
}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_encoding_and_decoding_give_the_same_bits_everywhere(name):
    """Both are fixed: other bytes need another codec id or version."""
    layout = KVLayout(3, 2, 32, 40, "bfloat16")
    integers = np.arange(np.prod(layout.shape), dtype=np.int64) * 2654435761 % 4099 - 2000
    values = (integers.astype(np.float32) / 256).reshape(layout.shape)
    encoded = encode(name, memoryview(from_float32(values, "bfloat16")).cast("B"), layout)
    decoded = bytearray(layout.block_bytes)
    decode_block(encoded, memoryview(decoded))
    digest = hashlib.sha256(encoded)
    digest.update(decoded)
    assert digest.hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", list(CODECS))
def test_decoding_in_one_piece_or_many_is_the_same(name):
    """Layers are worked on a few at a time; each is decoded from its own bytes alone."""
    layout = KVLayout(40, 4, 64, 32, "float16")
    data = block(layout)
    encoded = encode(name, data, layout)
    decoded = bytearray(layout.block_bytes)
    decode_block(encoded, memoryview(decoded))
    one = KVLayout(1, 4, 64, 32, "float16")
    for layer in (0, 17, 39):
        first, length = layout.layer_range(layer, layer + 1)
        alone = bytearray(length)
        decode_block(encode(name, data[first : first + length], one), memoryview(alone))
        assert decoded[first : first + length] == alone


@pytest.mark.parametrize("name", list(CODECS))
def test_sizes_are_known_beforehand(name):
    assert len(encode(name, block())) == encoded_bytes(CODECS[name], LAYOUT)


def test_codecs_make_blocks_smaller():
    layout = KVLayout(32, 8, 128, 64, "bfloat16")
    share = {n: encoded_bytes(c, layout) / layout.block_bytes for n, c in CODECS.items()}
    assert share["int8"] == share["fp8"] < 0.51
    assert share["int4"] < 0.32
    assert share["kivi2"] < 0.20


@pytest.mark.parametrize("name", list(CODECS))
def test_wrong_sizes_are_refused(name):
    data = block()
    into = memoryview(bytearray(encoded_bytes_max(CODECS[name], LAYOUT)))
    with pytest.raises(InvalidArgumentError, match=name):
        encode_block(CODECS[name], data[:-2], LAYOUT, into)
    with pytest.raises(InvalidArgumentError, match=name):
        encode_block(CODECS[name], data, LAYOUT, into[:-1])
    encoded = encode(name, data)
    for wrong in (encoded[:-1], encoded[:HEADER_BYTES], encoded[: HEADER_BYTES - 1], encoded[:0]):
        with pytest.raises(ProtocolError):
            decode_block(wrong, memoryview(bytearray(data.nbytes)))
    with pytest.raises(ProtocolError):
        decode_block(encoded, memoryview(bytearray(data.nbytes - 2)))


def test_layouts_too_large_for_a_header_are_refused():
    for layout in (KVLayout(1, 1, 1, 1 << 16, "float32"), KVLayout(600, 64, 256, 64, "float32")):
        with pytest.raises(InvalidArgumentError, match="too large"):
            encode_block(CODECS["int8"], memoryview(b""), layout, memoryview(bytearray()))
        with pytest.raises(ProtocolError):
            parse_header(header_of(CODECS["raw"], layout).encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_no_block_rather_than_another_error(data):
    with pytest.raises(ProtocolError):
        decode_block(memoryview(data), memoryview(bytearray(64)))


@pytest.mark.parametrize("name", list(CODECS))
@given(at=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_changed_bytes_are_refused_or_decode_to_something(name, at, value, cut):
    """Nothing but ProtocolError ever comes out; wrong values are for the checksum to find."""
    encoded = bytearray(encode(name, block()))
    encoded[at % len(encoded)] = value
    into = memoryview(bytearray(LAYOUT.block_bytes))
    try:
        with np.errstate(all="raise", under="ignore"):
            decode_block(memoryview(encoded)[: len(encoded) - cut], into)
    except (ProtocolError, FloatingPointError):
        return
    assert cut == 0


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("at", range(HEADER_BYTES))
def test_every_byte_of_the_header_counts(name, at):
    """Another codec, dtype, flag, group or shape is noticed, or gives another length."""
    encoded = bytearray(encode(name, block()))
    encoded[at] ^= 0x81
    into = memoryview(bytearray(LAYOUT.block_bytes))
    with pytest.raises(ProtocolError):
        decode_block(memoryview(encoded), into)


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_encoded_is_only_read_and_may_lie_anywhere(name, dtype):
    """Read-only bytes at an odd address, decoded to an odd address."""
    layout = KVLayout(2, 2, 16, 40, dtype)
    data = block(layout)
    shifted = memoryview(bytes(1) + bytes(data))[1:]
    encoded = encode(name, shifted, layout)
    assert encoded == encode(name, data, layout)
    into = memoryview(bytearray(1 + layout.block_bytes))[1:]
    decode_block(memoryview(bytes(1) + bytes(encoded))[1:], into)
    expected = bytearray(layout.block_bytes)
    decode_block(encoded, memoryview(expected))
    assert into == expected
