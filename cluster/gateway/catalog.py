"""Which models are served, and by whom: the conductor's members, as of a moment ago."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cluster.gateway.errors import ModelNotFoundError, NotServingError
from cluster.membership.client import ConductorClient
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.ports import Clock

FRESH_S = 1.0
"""Age up to which the list of members is used again: one question a second, whatever the load."""


class ModelCatalog:
    """Belongs to one event loop. Raises what the client raises if the conductor does not answer."""

    def __init__(self, client: ConductorClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._asking = asyncio.Lock()
        self._members: Sequence[conductor.MemberStatus] = ()
        self._asked_s = float("-inf")

    async def get(self, model: str) -> conductor.ModelInfo:
        """Raises ModelNotFoundError, or NotServingError if no model is served at all."""
        models = await self.models()
        if not models:
            raise NotServingError("no worker has registered with the conductor; start workers")
        if model not in models:
            raise ModelNotFoundError(
                f"the model {model!r} is not served; served are: {', '.join(sorted(models))}"
            )
        return models[model]

    async def models(self) -> dict[str, conductor.ModelInfo]:
        members = await self.members()
        workers = (status.member for status in members if status.member.HasField("model"))
        return {worker.model.name: worker.model for worker in workers}

    async def members(self) -> Sequence[conductor.MemberStatus]:
        async with self._asking:
            if self._clock() - self._asked_s > FRESH_S:
                self._members = await self._client.list_members()
                self._asked_s = self._clock()
        return self._members

    def other_decode_worker(self, model: str, failed: conductor.Member) -> conductor.Member | None:
        """The least loaded decode worker of `model` other than `failed`, as last seen."""
        others = [
            status
            for status in self._members
            if status.member.role == conductor.ROLE_DECODE
            and status.member.model.name == model
            and status.member.member_id != failed.member_id
            and not status.draining
        ]
        if not others:
            return None
        return min(others, key=lambda status: status.load.running + status.load.waiting).member
