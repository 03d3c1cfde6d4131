"""Every field that arrives is checked, and whatever arrives, the node goes on serving."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidArgumentError, KVStoreError, SessionExpiredError
from kvstore.transports.methods import request_type
from kvstore.wire.v1 import node_pb2

from .conftest import make_keys

SERVICE = node_pb2.DESCRIPTOR.services_by_name["NodeService"]
FINGERPRINT = b"f" * 16


def _keys(hashes=b"h" * 32, layout_fingerprint=FINGERPRINT):
    return {"layout_fingerprint": layout_fingerprint, "block_hashes": hashes}


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        ("OpenSession", {}, "client_name"),
        ("OpenSession", {"client_name": "x" * 300}, "client_name"),
        ("OpenSession", {"client_name": "x", "pid": 0xFFFFFFFF}, "pid"),
        ("OpenSession", {"client_name": "x", "layouts": [{}]}, "num_layers"),
        (
            "OpenSession",
            {
                "client_name": "x",
                "layouts": [
                    {
                        "num_layers": 4_000_000_000,
                        "num_kv_heads": 4_000_000_000,
                        "head_dim": 128,
                        "block_size_tokens": 16,
                        "dtype": "float32",
                    }
                ],
            },
            "does not fit",
        ),
        ("Match", {"keys": _keys(layout_fingerprint=b"short")}, "layout_fingerprint"),
        ("Match", {"keys": _keys(b"h" * 33)}, "block_hashes"),
        ("Match", {"keys": _keys(bytes(32 * 65_537))}, "at most 65536"),
        ("Reserve", {"keys": _keys(), "block_bytes": 0}, "block_bytes"),
        ("Reserve", {"keys": _keys(), "block_bytes": 1 << 60}, "block_bytes"),
        ("Reserve", {"keys": _keys(), "block_bytes": 1, "reservation_id": 1 << 63}, "2\\^63"),
        ("Commit", {"indices": [0], "checksums": [], "lengths_bytes": [1]}, "one entry"),
        ("Acquire", {"keys": _keys(), "wait_ms": 4_000_000_000}, "wait_ms"),
    ],
)
async def test_a_bad_field_is_named(make_store, method, fields, words):
    async with make_store() as store:
        message = request_type(SERVICE.methods_by_name[method])(**fields)
        if "session_id" in message.DESCRIPTOR.fields_by_name:
            message.session_id = store.open()
        with pytest.raises(InvalidArgumentError, match=words):
            await store.store.service.handlers()[method](message)


async def test_a_session_that_is_not_open_is_told_so(make_store):
    async with make_store() as store:
        handlers = store.store.service.handlers()
        for method in ("KeepAlive", "Reserve", "Commit", "Acquire", "Release", "Report"):
            message = request_type(SERVICE.methods_by_name[method])(session_id=5)
            if method in ("Reserve", "Acquire"):
                message.keys.CopyFrom(node_pb2.MatchRequest(keys=_keys()).keys)
            if method == "Reserve":
                message.block_bytes = 1
            with pytest.raises(SessionExpiredError):
                await handlers[method](message)
        for method in ("CloseSession", "Abort"):
            await handlers[method](request_type(SERVICE.methods_by_name[method])(session_id=5))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None
)
@given(data=st.data())
async def test_random_messages_raise_nothing_but_our_errors(make_store, data):
    async with make_store() as store:
        handlers = store.store.service.handlers()
        sessions = [0, store.open(), store.open(local=True)]
        keys = make_keys(1, 2, 3)
        for _ in range(20):
            method = data.draw(st.sampled_from(sorted(set(handlers) - {"CloseSession"})))
            message = request_type(SERVICE.methods_by_name[method])()
            for field in message.DESCRIPTOR.fields:
                _fill(message, field, data, sessions, keys)
            try:
                await handlers[method](message)
            except KVStoreError:
                continue
        store.manager.tick()
        store.clock.advance(1000)
        store.manager.tick()
        for session in sessions:
            store.manager.close_session(session)
        assert not store.host.statistics().blocks or all(
            store.host.drop([info.key]) for info in store.host.inventory()
        )
        assert store.host.statistics().used_bytes == 0, "nothing leaks"


def _fill(message, field, data, sessions, keys):
    small = st.integers(0, 4)
    if field.name == "session_id":
        message.session_id = data.draw(st.sampled_from(sessions))
    elif field.name == "keys":
        some = data.draw(st.lists(st.sampled_from(keys.hashes), max_size=4))
        message.keys.layout_fingerprint = keys.layout
        message.keys.block_hashes = b"".join(some)
    elif field.is_repeated and field.message_type is None:
        getattr(message, field.name).extend(data.draw(st.lists(small, max_size=3)))
    elif field.message_type is None and field.cpp_type != field.CPPTYPE_STRING:
        setattr(message, field.name, data.draw(small))
