"""The worker's client of the node on its host."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvstore.client.sync import SyncClient
from kvstore.core.errors import InvalidArgumentError, KVStoreError
from kvstore.core.ports import Clock
from model_runner.store_guard import StoreGuard


class NodeSession:
    """Opened when the node is first there, and kept. Thread-safe; owns the client."""

    def __init__(self, connect: Callable[[], SyncClient], clock: Clock) -> None:
        self._connect = connect
        self._opening = threading.Lock()
        self._client: SyncClient | None = None
        self.guard = StoreGuard(clock)

    def client(self) -> SyncClient | None:
        """None if the node is not there. One thread tries; the others wait for what it finds.

        Raises InvalidArgumentError if the node can never serve this worker.
        """
        with self._opening:
            if self._client is None and self.guard.may_write:
                try:
                    self._client = self._connect()
                except InvalidArgumentError:
                    raise
                except KVStoreError as error:
                    self.guard.failed("connect", error)
            return self._client

    def close(self) -> None:
        """Idempotent."""
        if self._client is not None:
            self._client.close()
