"""What comes back is within the published bound, whatever goes in; or it is byte-exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvstore.codecs.dtypes import STORAGE, from_float32, to_float32
from kvstore.codecs.frame import decode_block, encode_block, encoded_bytes, encoded_bytes_max
from kvstore.codecs.registry import CODECS
from kvstore.core.layout import KVLayout

LOSSY = [name for name in CODECS if name != "raw"]
LAYOUTS = st.builds(
    KVLayout,
    num_layers=st.integers(1, 3),
    num_kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([1, 3, 16, 20, 32, 37, 64]),
    block_size_tokens=st.sampled_from([1, 5, 16, 32, 40, 67]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)


def stored(values, dtype):
    return np.ascontiguousarray(from_float32(np.array(values, np.float32), dtype))


def through(name, data, layout):
    """(header, decoded array as stored)."""
    into = memoryview(bytearray(encoded_bytes_max(CODECS[name], layout)))
    header = encode_block(CODECS[name], memoryview(data).cast("B"), layout, into)
    decoded = np.empty_like(data)
    encoded = into[: 64 + header.payload_bytes]
    assert decode_block(encoded, memoryview(decoded).cast("B")) == header
    return header, decoded


def make_values(kind, layout, seed):  # noqa: C901
    rng = np.random.default_rng(seed)
    shape = layout.shape
    normal = rng.standard_normal(shape)
    match kind:
        case "normal":
            return normal
        case "constant":
            return np.full(shape, rng.normal() * 10.0 ** rng.integers(-3, 4))
        case "zero":
            return np.zeros(shape)
        case "offset":  # a small range far from zero
            return 1000 + normal * 1e-2
        case "outliers":
            return normal * np.where(rng.random(shape) < 0.02, 1e4, 1)
        case "channels":  # as keys have them
            return normal + 30 * (rng.random(shape[-1]) < 0.1)
        case "layers":  # magnitudes far apart
            return normal * 10.0 ** rng.integers(-4, 5, (shape[0], shape[1], shape[2], 1, 1))
        case "ties":  # half way between codes
            return rng.integers(-8, 8, shape) / 2
        case "extremes":
            return rng.choice([-65504.0, 65504.0, 0.0, 6e-8, -6e-8], shape)
        case "two":
            return np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    raise AssertionError(kind)


KINDS = ("normal", "constant", "zero", "offset", "outliers", "channels", "layers")
KINDS += ("ties", "extremes", "two")


def check_bound(name, data, layout):
    header, decoded = through(name, data, layout)
    values, back = to_float32(data, layout.dtype), to_float32(decoded, layout.dtype)
    assert not header.fell_back
    assert header.payload_bytes + 64 == encoded_bytes(CODECS[name], layout)
    error = np.abs(back.astype(np.float64) - values)
    assert np.all(error <= CODECS[name].error_bound(values.copy(), layout))


@pytest.mark.parametrize("name", LOSSY)
@given(layout=LAYOUTS, kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_the_error_is_within_the_bound(name, layout, kind, seed):
    values = np.clip(make_values(kind, layout, seed), -65504, 65504)
    check_bound(name, stored(values, layout.dtype), layout)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("exponent", [-79, -60, 30, 99])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bound_holds_at_any_usual_magnitude(name, exponent, dtype):
    layout = KVLayout(2, 2, 32, 33, dtype)
    values = np.clip(make_values("normal", layout, 1), -1.9, 1.9) * 2.0**exponent
    values[..., 0] = 2.0**exponent
    check_bound(name, stored(values, dtype), layout)


@pytest.mark.parametrize("name", LOSSY)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_bits_at_all_come_back_within_the_bound_or_exactly(name, data):
    """NaN, infinities, denormals, both zeros."""
    layout = data.draw(LAYOUTS)
    kind = {"float32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16}[layout.dtype]
    raw = data.draw(hnp.arrays(kind, layout.shape, fill=st.sampled_from([0, 1, 0x3C00, 0x7F80])))
    bits = raw.view(STORAGE[layout.dtype])
    header, decoded = through(name, bits, layout)
    if header.fell_back:
        assert decoded.tobytes() == bits.tobytes()
    else:
        check_bound(name, bits, layout)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e35, 3e38, 1e-40])
@pytest.mark.parametrize("where", [0, 5000 % 528, -1])
def test_values_that_no_bound_can_be_held_for_are_stored_raw(name, bad, where):
    """One of them in a block; the small one alone in its layer."""
    layout = KVLayout(3, 2, 16, 33, "float32")
    values = np.random.default_rng(0).standard_normal(layout.shape).astype(np.float32)
    layer = values[0]
    if abs(bad) < 1:
        layer[:] = 0
    layer.reshape(-1)[where] = bad
    in_the_tail = name == "kivi2" and where == -1 and np.isfinite(bad)
    header, decoded = through(name, values, layout)
    assert header.fell_back != in_the_tail, "what is kept in full precision has no limits"
    if header.fell_back:
        assert decoded.tobytes() == values.tobytes()
    else:
        assert decoded[0].reshape(-1)[-1] == np.float32(bad)


@pytest.mark.parametrize("dtype", list(STORAGE))
def test_raw_is_byte_exact_for_any_bits(dtype):
    layout = KVLayout(2, 2, 8, 8, dtype)
    bits = np.random.default_rng(3).integers(0, 256, layout.block_bytes, np.uint8)
    data = bits.view(STORAGE[dtype]).reshape(layout.shape)
    header, decoded = through("raw", data, layout)
    assert decoded.tobytes() == data.tobytes()
    assert not header.fell_back


@pytest.mark.parametrize("name", LOSSY)
def test_larger_errors_than_claimed_would_be_noticed(name):
    """The bound is tight: errors of random blocks reach half of it at least."""
    layout = KVLayout(2, 2, 64, 64, "float32")
    values = make_values("normal", layout, 5).astype(np.float32)
    _, decoded = through(name, values, layout)
    ratio = np.abs(decoded - values) / np.maximum(CODECS[name].error_bound(values, layout), 1e-30)
    assert 0.5 < ratio.max() <= 1


@pytest.mark.parametrize(
    ("name", "fraction"), [("fp8", 1 / 28), ("int8", 1 / 254), ("int4", 1 / 30), ("kivi2", 1 / 6)]
)
def test_published_fractions(name, fraction):
    """Of the largest magnitude (fp8, int8) or the range (int4, kivi2) of all values, at least."""
    layout = KVLayout(1, 2, 64, 32, "float32")
    values = make_values("normal", layout, 7).astype(np.float32)
    of = np.abs(values).max() if name in ("fp8", "int8") else np.ptp(values)
    _, decoded = through(name, values, layout)
    assert np.abs(decoded - values).max() <= of * fraction * 1.01


def test_kivi_follows_channels_of_keys_and_tokens_of_values():
    """K with a scale per channel and V with one per token come back nearly exactly; the other way
    round they do not."""
    layout = KVLayout(1, 1, 32, 32, "float32")
    ramp = 10.0 ** (np.arange(32) % 5 - 2)
    two_steps = np.where((np.arange(32)[:, None] + np.arange(32)) % 2, 1.0, -1.0)
    keys, values = two_steps * ramp[None, :], two_steps * ramp[:, None]
    _, decoded = through("kivi2", np.array([[[keys], [values]]], np.float32), layout)
    assert np.allclose(decoded[0, 0, 0], keys, rtol=0.01)
    assert np.allclose(decoded[0, 1, 0], values, rtol=0.01)
    _, swapped = through("kivi2", np.array([[[values], [keys]]], np.float32), layout)
    assert not np.allclose(swapped[0, 0, 0], values, rtol=0.01)


def test_the_residual_tail_of_kivi_is_exact():
    layout = KVLayout(2, 2, 32, 40, "bfloat16")
    data = stored(make_values("normal", layout, 9), "bfloat16")
    _, decoded = through("kivi2", data, layout)
    assert np.array_equal(decoded[:, :, :, 32:], data[:, :, :, 32:])
    assert not np.array_equal(decoded[:, :, :, :32], data[:, :, :, :32])


def test_fp8_codes_are_those_of_the_standard():
    """Every finite E4M3 value is its own nearest; torch's conversion says the same of others."""
    import torch

    layout = KVLayout(1, 1, 256, 1, "float32")
    rng = np.random.default_rng(0)
    row = np.concatenate([[448.0], rng.uniform(-448, 448, 127), rng.normal(0, 0.01, 128)])
    values = np.stack([row, row]).astype(np.float32).reshape(layout.shape)
    _, decoded = through("fp8", values, layout)
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(decoded, expected)
