"""Which models are served, and by whom: the conductor's members, as of a moment ago."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cluster.gateway.errors import ModelNotFoundError, NotServingError
from cluster.membership.verbs import ConductorVerbs
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.errors import DeadlineExceededError, KVStoreError, UnavailableError
from kvstore.core.ports import Clock

FRESH_S = 1.0
"""Age up to which the list of members is used again: one question a second, whatever the load."""

FORGET_S = 5.0
"""So long nobody at all has to be there before that is believed: a conductor that was restarted
without what it knew has to hear of all members first."""

_DEADLINE_S = 2.0
"""A conductor that hangs delays requests by that, one a second."""


class ModelCatalog:
    """Belongs to one event loop. While the conductor is away, models and workers are those that
    were last seen; if none ever were, what the client raises is raised."""

    def __init__(self, client: ConductorVerbs, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._asking = asyncio.Lock()
        self._members: Sequence[conductor.MemberStatus] = ()
        self._asked_s = self._seen_s = float("-inf")
        self._away: KVStoreError | None = None
        self._turn = 0

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
        members = await self._known_members()
        workers = (status.member for status in members if status.member.HasField("model"))
        return {worker.model.name: worker.model for worker in workers}

    async def members(self) -> Sequence[conductor.MemberStatus]:
        """Raises what the client raises while the conductor is away."""
        async with self._asking:
            if self._clock() - self._asked_s > FRESH_S:
                await self._ask()
        if self._away is not None:
            raise self._away.with_traceback(None)
        return self._members

    @property
    def away(self) -> bool:
        """Whether the conductor did not answer when it was last asked."""
        return self._away is not None

    def in_turn(self, model: str) -> conductor.RouteResponse | None:
        """A placement without the conductor: workers as last seen, one after another. None if there
        was no decode worker."""
        prefills = self._workers(conductor.ROLE_PREFILL, model)
        decodes = self._workers(conductor.ROLE_DECODE, model)
        if not decodes:
            return None
        self._turn += 1
        prefill = prefills[self._turn % len(prefills)] if prefills else None
        return conductor.RouteResponse(prefill=prefill, decode=decodes[self._turn % len(decodes)])

    async def _known_members(self) -> Sequence[conductor.MemberStatus]:
        try:
            return await self.members()
        except (UnavailableError, DeadlineExceededError):
            if not self._members:
                raise
            return self._members

    async def _ask(self) -> None:
        try:
            members = await self._client.list_members(deadline_s=_DEADLINE_S)
        except UnavailableError as error:  # told at once: ask again next time
            self._away = error
            return
        except DeadlineExceededError as error:
            self._away = error
        else:
            self._away = None
            if members or self._clock() - self._seen_s > FORGET_S:
                self._members, self._seen_s = members, self._clock()
        self._asked_s = self._clock()

    def _workers(self, role: conductor.Role, model: str) -> list[conductor.Member]:
        return [
            status.member
            for status in self._members
            if status.member.role == role
            and status.member.model.name == model
            and not status.draining
        ]

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
