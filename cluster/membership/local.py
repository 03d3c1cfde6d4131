"""The conductor in this process."""

from __future__ import annotations

import asyncio

from google.protobuf.message import Message

from cluster.membership.methods import ConductorMethods
from cluster.membership.verbs import ConductorVerbs
from kvstore.core.errors import DeadlineExceededError, UnavailableError


class LocalConductor(ConductorVerbs):
    """Calls on the loop of the conductor's host; nothing is copied but what the messages hold."""

    def __init__(self, methods: ConductorMethods, *, deadline_s: float = 5.0) -> None:
        super().__init__(deadline_s)
        self._methods = methods
        self._closed = False

    async def close(self) -> None:
        self._closed = True

    async def _ask(self, method: str, request: Message, deadline_s: float) -> Message:
        if self._closed:
            raise UnavailableError("this conductor was closed")
        try:
            async with asyncio.timeout(deadline_s):
                return await self._methods.call(method, request)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"the conductor did not answer {method} within {deadline_s:g} s"
            ) from error
