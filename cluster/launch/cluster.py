"""A whole cluster on this host: every part in a process of its own, hosted by Ray."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from cluster.conductor.config import ConductorConfig
from cluster.config import Settings
from cluster.launch.arena_folder import make_arena_folder
from cluster.launch.conductor_part import ConductorPart
from cluster.launch.part import Part
from cluster.launch.preflight import check
from cluster.launch.ray_instance import RayInstance
from cluster.launch.services import Kind, ServiceConfig
from cluster.membership.client import ConductorClient
from kvstore.core.errors import DeadlineExceededError
from kvstore.transports.security.keys import load_client_keys
from model_runner.config import WorkerConfig

START_DEADLINE_S = 60.0
MODEL_DEADLINE_S = 900.0
"""A worker may have to read, or even to download, a large model."""
REGISTER_DEADLINE_S = 30.0
POLL_S = 0.1


class LocalCluster:
    """Conductor, node, workers and gateway as `settings` say. Belongs to one event loop, which runs
    in the main thread.

    `start` returns when requests can be served, or raises one KVStoreError that names the part;
    `stop` ends every process and removes every file that it made, also after a failed or cancelled
    start. The disk tier's own folder stays: it is the user's, and warm at the next start.
    """

    def __init__(self, settings: Settings, progress: Callable[[str], None]) -> None:
        self._settings = settings
        self._progress = progress
        self._ray: RayInstance | None = None
        self._parts: list[Part] = []
        self._arena_folder: Path | None = None
        self.base_url = ""
        self.conductor_address = ""

    @property
    def model_name(self) -> str:
        config = self._settings.decode
        return config.served_model_name or Path(config.model).name

    async def start(self) -> None:
        check(self._settings)
        self._progress("starting Ray")
        self._ray = RayInstance(self._settings.ray_address)
        self._ray.start()
        self._progress("starting conductor and node")
        node = await self._start_conductor_and_node()
        self._progress("starting workers: loading the model")
        await self._start_workers(node)
        self._progress("starting the gateway")
        update = {"conductor": self.conductor_address}
        gateway = self._add("gateway", "gateway", self._settings.gateway.model_copy(update=update))
        self.base_url = (await gateway.start(START_DEADLINE_S))["base_url"]

    async def stop(self) -> None:
        """Idempotent. Bounded: a part that does not stop in time is killed."""
        parts, self._parts = self._parts, []
        for part in reversed(parts):
            await part.stop()
        instance, self._ray = self._ray, None
        if instance:
            await instance.stop()
        if self._arena_folder:
            shutil.rmtree(self._arena_folder, ignore_errors=True)

    def _add(self, name: str, kind: Kind, config: ServiceConfig) -> Part:
        part = Part(name, kind, config)
        self._parts.append(part)
        return part

    async def _start_conductor_and_node(self) -> dict[str, str]:
        """Returns the node's addresses."""
        self._arena_folder = make_arena_folder(self._settings.node.arena_folder)
        conductor = ConductorPart(self._conductor_config(self._arena_folder))
        self._parts.append(conductor)
        self.conductor_address = (await conductor.start(START_DEADLINE_S))["address"]
        update = {"conductor": self.conductor_address, "arena_folder": self._arena_folder}
        config = self._settings.node.model_copy(update=update)
        return await self._add(config.node_id, "node", config).start(START_DEADLINE_S)

    def _conductor_config(self, folder: Path) -> ConductorConfig:
        """What it knows outlives it, at least until this cluster ends."""
        config = self._settings.conductor
        update = {"snapshot": config.snapshot or folder / "conductor-snapshot"}
        return config.model_copy(update=update)

    async def _start_workers(self, node: dict[str, str]) -> None:
        settings = self._settings
        shared = {
            "node": node["zmq_endpoint"],
            "node_id": settings.node.node_id,
            "conductor": self.conductor_address,
        }
        threads = _threads_of_a_worker(settings)
        for config in _copies(settings.prefill, "prefill", settings.prefill_workers):
            update = {**shared, "threads": config.threads or threads}
            self._add(config.worker_id, "prefill", config.model_copy(update=update))
        for config in _copies(settings.decode, "decode", settings.decode_workers):
            update = {**shared, "threads": config.threads or threads}
            self._add(config.worker_id, "decode", config.model_copy(update=update))
        workers = [part for part in self._parts if part.kind in ("prefill", "decode")]
        await _all(worker.start(MODEL_DEADLINE_S) for worker in workers)
        await self._registered({settings.node.node_id, *(worker.name for worker in workers)})

    async def _registered(self, names: set[str]) -> None:
        """Wait until the conductor knows them all."""
        missing = names
        async with ConductorClient(
            self.conductor_address,
            keys=load_client_keys(self._settings.gateway.credentials, "gateway.credentials"),
        ) as conductor:
            for _ in range(int(REGISTER_DEADLINE_S / POLL_S)):
                listed = await conductor.list_members()
                missing = names - {status.member.member_id for status in listed}
                if not missing:
                    return
                await asyncio.sleep(POLL_S)
        raise DeadlineExceededError(
            f"not registered with the conductor after {REGISTER_DEADLINE_S:.0f} s: "
            f"{', '.join(sorted(missing))}"
        )


def _copies(config: WorkerConfig, role: Kind, count: int) -> list[WorkerConfig]:
    """One configuration for each worker, with its own name."""
    names = [config.worker_id] if count == 1 else [f"{role}-{number}" for number in range(count)]
    return [config.model_copy(update={"worker_id": name}) for name in names]


def _threads_of_a_worker(settings: Settings) -> int:
    """So many that all workers together do not ask for more cores than there are."""
    workers = settings.prefill_workers + settings.decode_workers
    return max(1, len(os.sched_getaffinity(0)) // workers)


async def _all(starts: Iterable[Awaitable[object]]) -> None:
    """Wait for all; the first failure cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(_task(start))
    except* Exception as errors:
        raise errors.exceptions[0] from None


async def _task(start: Awaitable[object]) -> None:
    await start
