"""The conductor through its Ray actor."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from google.protobuf.message import Message
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError

from cluster.launch.conductor_actor import find_conductor
from cluster.membership.methods import RESPONSE_TYPES
from cluster.membership.verbs import ConductorVerbs
from kvstore.core.errors import DeadlineExceededError, KVStoreError, UnavailableError


class RayConductor(ConductorVerbs):
    """Found by name at the first call, and again once its actor has gone for good. Needs no address
    of the conductor, and no route to it but Ray's."""

    def __init__(self, name: str, *, deadline_s: float = 5.0) -> None:
        super().__init__(deadline_s)
        self._name = name
        self._actor: Any = None

    async def close(self) -> None:
        self._actor = None

    async def _ask(self, method: str, request: Message, deadline_s: float) -> Message:
        call = self._found().call.remote(method, request.SerializeToString())
        try:
            async with asyncio.timeout(deadline_s):
                packed = await call
        except TimeoutError as error:
            ray.cancel(call)
            raise DeadlineExceededError(
                f"conductor {self._name!r}: no answer to {method} within {deadline_s:g} s"
            ) from error
        except asyncio.CancelledError:
            ray.cancel(call)
            raise
        except RayError as error:
            raise self._meaning(error) from error
        response: Message = RESPONSE_TYPES[method].FromString(packed)
        return response

    def _found(self) -> Any:
        if self._actor is None:
            self._actor = find_conductor(self._name)
        if self._actor is None:
            raise UnavailableError(f"no actor {self._name!r}: start a conductor in this Ray")
        return self._actor

    def _meaning(self, error: RayError) -> KVStoreError:
        if isinstance(error, RayTaskError):
            if isinstance(error.cause, KVStoreError):
                return error.cause
            return KVStoreError(f"conductor {self._name!r}: {error.cause!r}")
        if isinstance(error, RayActorError | TaskCancelledError):
            self._actor = None
            return UnavailableError(f"conductor {self._name!r} is away: its actor restarts or died")
        return KVStoreError(f"conductor {self._name!r}: {error}")
