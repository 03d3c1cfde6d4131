"""The verbs of a whole node, ready to be fuzzed: any bytes as the request of any method."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from kvstore.core.ids import BlockHash, LayoutFingerprint
from kvstore.events.null import NullEventSink
from kvstore.node.config import NodeConfig
from kvstore.node.servers import SERVICE
from kvstore.node.store import LocalStore
from kvstore.testing.fuzzing import Parser
from kvstore.transports.methods import bind, parse
from kvstore.transports.process import this_process
from kvstore.wire.v1 import block_pb2, node_pb2

DEADLINE_S = 5.0
_BLOCK_BYTES = 4096


class FuzzedNode:
    """A small store with one session open, on an event loop of its own.

    An input is [method, 1 byte][session, 1 byte][request]. Where the session byte is even, the
    request gets the id of the session that is open, which no random bytes would ever name.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory(prefix="kvstore-fuzz-")
        config = NodeConfig(
            host=4 << 20, disk=1 << 20, disk_path=Path(self._folder.name), lease_ttl_ms=600_000
        )
        self._store = LocalStore(config, NullEventSink(), boot_id=1)
        self._methods = bind(SERVICE, self._store.service.handlers())
        self._names = sorted(self._methods)
        self._runner.run(self._store.start())
        self._session_id = self._runner.run(self._open())

    def parser(self) -> Parser:
        return Parser("node", self._call, self._examples())

    def close(self) -> None:
        self._runner.run(self._store.stop())
        self._runner.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, data: bytes) -> None:
        if len(data) < 2:
            return
        method = self._methods[self._names[data[0] % len(self._names)]]
        request = parse(method.request_type, data[2:])
        if data[1] % 2 == 0 and "session_id" in request.DESCRIPTOR.fields_by_name:
            if request.DESCRIPTOR.name == "CloseSessionRequest":
                return
            request.session_id = self._session_id  # type: ignore[attr-defined]
        if "wait_ms" in request.DESCRIPTOR.fields_by_name:
            request.wait_ms %= 10  # type: ignore[attr-defined]
        self._runner.run(asyncio.wait_for(method.handler(request), DEADLINE_S))

    async def _open(self) -> int:
        process = this_process()
        opened = await self._methods["OpenSession"].handler(
            node_pb2.OpenSessionRequest(
                client_name="fuzz", pid=process.pid, process_start=process.start_ticks
            )
        )
        return int(opened.session_id)  # type: ignore[attr-defined]

    def _examples(self) -> Sequence[bytes]:
        keys = block_pb2.BlockKeys(
            layout_fingerprint=LayoutFingerprint(b"f" * 16),
            block_hashes=b"".join(BlockHash(bytes([i]) * 32) for i in range(3)),
        )
        layout = block_pb2.KVLayout(
            num_layers=1,
            num_kv_heads=1,
            head_dim=8,
            block_size_tokens=4,
            dtype="float32",
            layers=[3],
        )
        requests = {
            "OpenSession": node_pb2.OpenSessionRequest(client_name="x", layouts=[layout]),
            "Match": node_pb2.MatchRequest(keys=keys),
            "Reserve": node_pb2.ReserveRequest(
                keys=keys,
                block_bytes=_BLOCK_BYTES,
                reservation_id=7,
                retention=[node_pb2.Retention(first=0, last=2, priority=80, duration_ms=5)],
            ),
            "Commit": node_pb2.CommitRequest(
                reservation_id=7,
                indices=[0, 1],
                checksums=[1, 2],
                lengths_bytes=[_BLOCK_BYTES, _BLOCK_BYTES],
            ),
            "Abort": node_pb2.AbortRequest(reservation_id=7),
            "Acquire": node_pb2.AcquireRequest(keys=keys, wait_ms=1, streaming=True),
            "Release": node_pb2.ReleaseRequest(lease_ids=[1, 2, 3]),
            "Report": node_pb2.ReportRequest(lease_id=1, indices=[0]),
            "Confirm": node_pb2.ConfirmRequest(lease_id=1, wait_ms=1),
            "Prefetch": node_pb2.PrefetchRequest(keys=keys),
            "Pin": node_pb2.PinRequest(keys=keys, ttl_ms=5),
            "Unpin": node_pb2.UnpinRequest(keys=keys),
            "Retain": node_pb2.RetainRequest(
                keys=keys, retention=[node_pb2.Retention(first=0, last=3, priority=1)]
            ),
            "Remove": node_pb2.RemoveRequest(keys=keys),
            "Clear": node_pb2.ClearRequest(),
            "Statistics": node_pb2.StatisticsRequest(),
        }
        return [
            bytes([self._names.index(name), 0]) + request.SerializeToString()
            for name, request in requests.items()
            if name in self._methods
        ]
