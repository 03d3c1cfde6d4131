"""Nodes and workers as members: the server, and its registration with the conductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cluster.membership.registrar import Registrar
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.transports.security.config import ClientSecurity
from kvstore.transports.security.keys import load_client_keys


class Server(Protocol):
    """A node or a worker."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    @property
    def epoch(self) -> int: ...


class Member:
    """A server that registers once it serves, and drains before it stops serving.

    Without an address of a conductor it serves just the same, and registers nowhere.
    """

    def __init__(
        self,
        server: Server,
        conductor: str | None,
        describe: Callable[[], pb.Member],
        load: Callable[[], pb.Load],
        credentials: ClientSecurity,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """`describe`, `load` and `alive` are asked once the server has started; one that is not
        alive any more takes no new requests."""
        self._server = server
        self._conductor = conductor
        self._describe = describe
        self._load = load
        self._credentials = credentials
        self._alive = alive
        self._registrar: Registrar | None = None

    async def start(self) -> None:
        keys = load_client_keys(self._credentials, "credentials")
        await self._server.start()
        if self._conductor is not None:
            self._registrar = Registrar(
                self._conductor,
                self._describe(),
                self._server.epoch,
                self._load,
                keys=keys,
                alive=self._alive,
            )
            await self._registrar.start()

    async def stop(self) -> None:
        if self._registrar is not None:
            await self._registrar.stop()
        await self._server.stop()

    @property
    def addresses(self) -> dict[str, str]:
        described = self._describe()
        names = ("grpc_address", "event_endpoint", "replay_endpoint")
        return {name: str(getattr(described, name)) for name in names}
