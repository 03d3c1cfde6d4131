"""Metrics over HTTP, for processes that serve nothing else over it."""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from kvstore.core.errors import ConfigurationError


class MetricsServer:
    """`GET /metrics` of one collector, on a thread of its own. `start` → `stop`, once.

    Plain HTTP, for whoever reaches the address: numbers, and names of models and errors.
    """

    def __init__(self, address: str, collector: Collector) -> None:
        """`address` is host:port; port 0 takes any free one."""
        self._host, _, self._port = address.rpartition(":")
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Raises ConfigurationError if the address cannot be listened on."""
        assert self._server is None, "started once"
        host = self._host.strip("[]")
        try:
            self._server, self._thread = start_http_server(
                int(self._port), host or "127.0.0.1", self._registry
            )
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigurationError(
                f"cannot serve metrics on {self._host}:{self._port} ({error}): choose a free "
                "host:port of this host"
            ) from error

    def stop(self) -> None:
        """Idempotent."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = None

    @property
    def address(self) -> str:
        assert self._server is not None, "start() first"
        return f"{self._host}:{self._server.server_port}"
