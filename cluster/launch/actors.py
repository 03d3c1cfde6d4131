"""Ray actors: each hosts one service in a process of its own.

Ray starts, places and ends them. Nothing but settings and addresses goes through Ray.
"""

from __future__ import annotations

from typing import Any

import ray

from cluster.launch.services import Kind, ServiceConfig, make_service


class HostedService:
    """The process side. All methods run on the actor's event loop."""

    def __init__(self, kind: Kind, config: ServiceConfig) -> None:
        self._service = make_service(kind, config)

    async def start(self) -> dict[str, str]:
        """Returns the service's addresses. Raises what its start raises."""
        await self._service.start()
        return self._service.addresses

    async def stop(self) -> None:
        await self._service.stop()


def create_actor(kind: Kind, config: ServiceConfig) -> Any:
    """A handle of a new actor on this host; its process starts in the background.

    It asks Ray for no CPU: how many threads a worker uses is in its settings, and a host with two
    cores must be able to run five processes.
    """
    here = ray.get_runtime_context().get_node_id()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": strategy}
    return ray.remote(HostedService).options(**options).remote(kind, config)
