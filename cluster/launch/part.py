"""One part of a cluster as its launcher sees it: a name, an actor, a start and a stop."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.launch.actors import create_actor
from cluster.launch.services import Kind, ServiceConfig
from kvstore.core.errors import DeadlineExceededError, KVStoreError, UnavailableError

_LOG = logging.getLogger(__name__)

STOP_DEADLINE_S = 15.0


class Part:
    """Belongs to the launcher's event loop. `start` once, then `stop`."""

    def __init__(self, name: str, kind: Kind, config: ServiceConfig) -> None:
        self.name = name
        self.kind = kind
        self._config = config
        self._actor: Any = None
        self._started = False

    async def start(self, deadline_s: float) -> dict[str, str]:
        """Returns its addresses. Raises the error of the service's start, or a KVStoreError that
        names this part."""
        self._actor = create_actor(self.kind, self._config)
        addresses: dict[str, str] = await self._call("start", deadline_s)
        self._started = True
        return addresses

    async def stop(self) -> None:
        """Idempotent. Whatever comes of stopping it in peace, its process ends; one that is still
        starting, which may take a model's time, is not asked."""
        if self._actor is None:
            return
        try:
            if self._started:
                await self._call("stop", STOP_DEADLINE_S)
        except KVStoreError as error:
            _LOG.warning("%s did not stop in peace: %s", self.name, error)
        finally:
            ray.kill(self._actor)
            self._actor = None

    async def _call(self, method: str, deadline_s: float) -> Any:
        call = getattr(self._actor, method).remote()
        try:
            async with asyncio.timeout(deadline_s):
                return await call
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{self.name}: no answer to {method} within {deadline_s:.0f} s"
            ) from error
        except RayTaskError as error:
            if isinstance(error.cause, KVStoreError):
                raise error.cause from None
            raise KVStoreError(f"{self.name}: {error.cause!r}") from error
        except RayActorError as error:
            raise UnavailableError(f"{self.name}: its process ended unexpectedly") from error
        except RayError as error:
            raise KVStoreError(f"{self.name}: {error}") from error
