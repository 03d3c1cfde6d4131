"""The conductor of a cluster as its launcher sees it."""

from __future__ import annotations

from cluster.conductor.config import ConductorConfig
from cluster.launch.conductor_actor import create_conductor, find_conductor
from cluster.launch.part import Part


class ConductorPart(Part):
    """One that is there already, under its name, is used as it is, and left running: it belongs to
    whoever started it, or outlived him."""

    def __init__(self, config: ConductorConfig) -> None:
        super().__init__("conductor", "conductor", config)
        self._conductor = config
        self._is_ours = False

    async def start(self, deadline_s: float) -> dict[str, str]:
        self._actor = find_conductor(self._conductor.name)
        if self._actor is None:
            self._actor = create_conductor(self._conductor.name, self._conductor)
            self._is_ours = True
        address: str = await self._call("address", deadline_s)
        self._started = True
        return {"address": address}

    async def stop(self) -> None:
        if self._is_ours:
            await super().stop()
