"""A node inside the caller's process: the same code without daemons."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from kvstore.client.aio import Client
from kvstore.client.loop_thread import LoopThread
from kvstore.client.sync import SyncClient
from kvstore.client.verification import Verify
from kvstore.core.errors import ConfigurationError
from kvstore.core.layout import KVLayout
from kvstore.events.null import NullEventSink
from kvstore.node.config import NodeConfig
from kvstore.node.store import LocalStore
from kvstore.transports.inproc import InprocChannel, InprocServer


class EmbeddedStore(SyncClient):
    """A `SyncClient` that owns the node it talks to. `close` stops both; the disk tier stays."""

    def __init__(self, inner: Client, loop: LoopThread, store: LocalStore) -> None:
        super().__init__(inner, loop)
        self._store = store

    @classmethod
    def open(
        cls, config: NodeConfig, layouts: Sequence[KVLayout], tenant: str, verify: Verify
    ) -> Self:
        """Raises ConfigurationError, with nothing left behind."""
        store = LocalStore(config, NullEventSink(), boot_id=time.time_ns())
        loop = LoopThread("kvstore-embedded")
        try:
            return cls(loop.run(_start(store, layouts, tenant, verify)), loop, store)
        except BaseException:
            loop.run(store.stop())
            loop.stop()
            raise

    def close(self) -> None:
        if self._loop.running:
            self._loop.run(self._inner.close())
            self._loop.run(self._store.stop())
            self._loop.stop()


async def _start(
    store: LocalStore, layouts: Sequence[KVLayout], tenant: str, verify: Verify
) -> Client:
    await store.start()
    server = InprocServer(store.service.handlers())
    await server.start()
    return await Client.over(
        InprocChannel(server),
        server.endpoint,
        client_name="embedded",
        layouts=layouts,
        tenant=tenant,
        verify=verify,
    )


def open_embedded(
    path: str | Path | None,
    host: str | int,
    disk: str | int,
    layouts: Sequence[KVLayout],
    tenant: str,
    verify: Verify,
) -> EmbeddedStore:
    """See `kvstore.open`."""
    values = {"node_id": "embedded", "host": host, "disk": disk, "disk_path": path}
    try:
        config = NodeConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{name}: {first['msg']}; got {first['input']!r}") from error
    return EmbeddedStore.open(config, layouts, tenant, verify)
