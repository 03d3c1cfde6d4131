"""Keeps one member registered with the conductor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from cluster.membership.client import ConductorClient
from cluster.wire.v1.conductor_pb2 import Load, Member
from kvstore.core.errors import (
    InvalidArgumentError,
    KVStoreError,
    SessionExpiredError,
)
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys

_LOG = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
_DEADLINE_S = 2.0


class Registrar:
    """`start` registers and keeps a task that tells the load every second; `stop` drains.

    A conductor that is away or restarts costs nothing but its credit for this member's cache: the
    task goes on trying and registers again as soon as it answers. Belongs to one event loop;
    `load` is called on it and must not wait.
    """

    def __init__(
        self,
        conductor_address: str,
        member: Member,
        epoch: int,
        load: Callable[[], Load],
        *,
        keys: ClientKeys = NO_CLIENT_KEYS,
        heartbeat_s: float = HEARTBEAT_S,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """`member.member_id` is the publisher id of its block events, `epoch` their epoch.

        Once `alive` says no, the member is drained and falls silent: what it serves with is beyond
        repair.
        """
        self._client = ConductorClient(conductor_address, keys=keys, deadline_s=_DEADLINE_S)
        self._member = member
        self._epoch = epoch
        self._load = load
        self._heartbeat_s = heartbeat_s
        self._alive = alive
        self._registered = False
        self._complained = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def registered(self) -> bool:
        """Whether the conductor knew this member when it last answered."""
        return self._registered

    async def start(self) -> None:
        """Register. A conductor that is away is tried again in the background.

        Raises IdentityMismatchError or InvalidArgumentError if the conductor refuses this member.
        """
        assert self._task is None, "started twice"
        try:
            await self._beat()
        except InvalidArgumentError:
            await self._client.close()
            raise
        except KVStoreError as error:
            self._complain(error)
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Ask for no new requests and stop telling. Idempotent; a dead conductor is no error."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        if self._registered:
            with contextlib.suppress(KVStoreError):
                await self._client.drain(self._member.member_id)
        await self._client.close()

    async def _keep(self) -> None:
        while self._alive():
            await asyncio.sleep(self._heartbeat_s)
            try:
                await self._beat()
            except KVStoreError as error:
                self._complain(error)
        _LOG.error("member %s cannot serve any more: no new requests", self._member.member_id)
        with contextlib.suppress(KVStoreError):  # it falls silent, so it is forgotten soon anyway
            await self._client.drain(self._member.member_id)

    async def _beat(self) -> None:
        """Tell the load; register first where the conductor does not know this member. Nothing is
        told of one that died meanwhile."""
        if not self._alive():
            return None
        if self._registered:
            try:
                return await self._tell()
            except SessionExpiredError:
                self._registered = False
        await self._client.register(self._member, self._epoch)
        self._registered = True
        self._complained = ""
        _LOG.info("member %s is registered", self._member.member_id)
        return await self._tell()

    async def _tell(self) -> None:
        await self._client.heartbeat(self._member.member_id, self._epoch, self._load())
        self._complained = ""

    def _complain(self, error: KVStoreError) -> None:
        """Once for each kind of trouble, not once a second."""
        if self._complained != type(error).__name__:
            _LOG.warning("member %s cannot register: %s", self._member.member_id, error)
        self._complained = type(error).__name__
