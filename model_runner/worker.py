"""A worker process's parts, put together: model, engine, store, events and service."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

from kvstore.client.sync import SyncClient
from kvstore.events.publisher import EventPublisher
from kvstore.transports.advertise import reachable
from kvstore.transports.grpc.server import GrpcServer
from kvstore.transports.methods import StreamWriter
from kvstore.transports.metrics_server import MetricsServer
from kvstore.transports.security.curve import Admit
from model_runner.config import WorkerConfig
from model_runner.engine import Engine
from model_runner.engine_output import EngineLoad
from model_runner.engine_step import room_tokens
from model_runner.generation import ServedModel
from model_runner.inventory import RecordedInventory
from model_runner.keys import server_keys
from model_runner.load_or_compute import LoadPlanner
from model_runner.loading import resolve_folder
from model_runner.metrics import WorkerCollector
from model_runner.runner import ModelRunner
from model_runner.service import GenerationService
from model_runner.store import NullStore, StoreConnector
from model_runner.store_node import NodeStore
from model_runner.types import Scheduler

_DRAIN_S = 5.0
"""Time that requests have to finish when their worker stops."""

_LAST_WORDS_S = 2.0
"""Time for those that did not finish to be told so."""


@dataclass(frozen=True, slots=True)
class WorkerRole:
    """What makes a worker a prefill or a decode worker."""

    service: ServiceDescriptor
    method: str
    make_scheduler: Callable[[WorkerConfig], Scheduler]
    make_handler: Callable[[GenerationService], StreamWriter]


class Worker:
    """Serves one model over gRPC, with the block events of its device tier.

    Lifecycle: construct → `start` → `stop`, the two on one event loop; once. The properties hold
    from `start` on.
    Failure: `start` raises ConfigurationError for a model, address or setting that cannot be used,
    LayoutMismatchError if the node serves another layout, and leaves nothing behind. A node that is
    not there delays nothing: the worker computes what it cannot fetch, and finds the node later.
    A defect that ends the engine ends all requests; health says NOT_SERVING from then on.
    """

    def __init__(self, config: WorkerConfig, role: WorkerRole) -> None:
        self._config = config
        self._role = role
        self._parts = AsyncExitStack()
        self._engine_died = asyncio.Event()
        self._metrics: MetricsServer | None = None

    async def start(self) -> None:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Refuse new requests with UNAVAILABLE, give those that are here a few seconds to finish
        and end the rest likewise (another worker goes on from their tokens), publish what is
        computed, close. Idempotent."""
        await self._parts.aclose()

    @property
    def grpc_address(self) -> str:
        return reachable(self._server.endpoint, self._config.advertise_host)

    @property
    def event_endpoint(self) -> str:
        return reachable(self._publisher.event_endpoint, self._config.advertise_host)

    @property
    def replay_endpoint(self) -> str:
        return reachable(self._publisher.replay_endpoint, self._config.advertise_host)

    @property
    def metrics_address(self) -> str | None:
        """None without metrics."""
        return self._metrics.address if self._metrics else None

    @property
    def epoch(self) -> int:
        return self._publisher.epoch

    @property
    def model(self) -> ServedModel:
        return self._model

    @property
    def alive(self) -> bool:
        """False once a defect has ended the engine, or while it stops: it takes nothing more."""
        return self._engine.alive

    def load(self) -> EngineLoad:
        return self._engine.load()

    async def _start(self) -> None:
        config = self._config
        self._keys = server_keys(config)
        runner = await asyncio.to_thread(ModelRunner, config)
        self._model = _served_model(config, runner)
        planner = LoadPlanner(max_step_tokens=config.max_batch_tokens)
        store = await asyncio.to_thread(_open_store, config, runner, planner)
        self._parts.push_async_callback(asyncio.to_thread, store.close)
        inventory = await self._start_events(runner)
        self._engine = Engine(
            runner,
            self._role.make_scheduler(config),
            store,
            inventory,
            max_live=config.max_running + config.max_waiting,
            planner=planner,
            died=partial(_set_on, asyncio.get_running_loop(), self._engine_died),
        )
        self._parts.push_async_callback(asyncio.to_thread, self._engine.close)
        self._start_metrics(planner, store)
        await self._start_server()
        watching = asyncio.create_task(self._watch())
        self._parts.callback(watching.cancel)

    def _start_metrics(self, planner: LoadPlanner, store: StoreConnector) -> None:
        if self._config.metrics_address is None:
            return
        node_store = store if isinstance(store, NodeStore) else None
        collector = WorkerCollector(self._model.name, self._engine, planner, node_store)
        self._metrics = MetricsServer(self._config.metrics_address, collector)
        self._metrics.start()
        self._parts.push_async_callback(asyncio.to_thread, self._metrics.stop)

    async def _watch(self) -> None:
        await self._engine_died.wait()
        await self._server.refuse()

    async def _start_events(self, runner: ModelRunner) -> RecordedInventory:
        config = self._config
        inventory = RecordedInventory(runner.groups[0].layout.fingerprint)
        self._publisher = EventPublisher(
            config.worker_id,
            time.time_ns(),
            config.event_endpoint,
            config.replay_endpoint,
            inventory,
            secure=self._keys.secure(Admit.PEERS),
        )
        inventory.audience = self._publisher
        await self._publisher.start()
        self._parts.push_async_callback(self._publisher.stop)
        return inventory

    async def _start_server(self) -> None:
        handler = self._role.make_handler(GenerationService(self._engine, self._model))
        self._server = GrpcServer(
            self._role.service,
            {},
            self._config.grpc_address,
            writers={self._role.method: handler},
            keys=self._keys,
            drain_s=_DRAIN_S + _LAST_WORDS_S,
        )
        await self._server.start()
        self._parts.push_async_callback(self._drain)

    async def _drain(self) -> None:
        """The engine ends what is late, so that each call ends with a reason."""
        await asyncio.gather(self._server.stop(), asyncio.to_thread(self._drain_engine))

    def _drain_engine(self) -> None:
        self._engine.drain(_DRAIN_S)
        self._engine.close()


def _served_model(config: WorkerConfig, runner: ModelRunner) -> ServedModel:
    room = room_tokens(runner)
    longest = runner.max_context_tokens
    return ServedModel(
        name=config.served_model_name or Path(config.model).name,
        identity=runner.identity,
        vocab_size=runner.vocab_size,
        max_context_tokens=longest if room is None else min(longest, room),
        path=str(resolve_folder(config.model)),
    )


def _set_on(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: nobody asks any more
        loop.call_soon_threadsafe(event.set)


def _open_store(config: WorkerConfig, runner: ModelRunner, planner: LoadPlanner) -> StoreConnector:
    if config.node is None:
        return NullStore()
    store = NodeStore(
        runner.groups,
        runner.caches,
        partial(
            SyncClient.connect,
            config.node,
            client_name=config.worker_id,
            layouts=[group.layout for group in runner.groups],
            security=config.credentials,
            verify="always",  # an engine cannot tell wrong bytes from right ones
            deadline_s=config.fetch_deadline_s,
        ),
        deadline_s=config.fetch_deadline_s,
        max_pending_blocks=config.device_blocks,
        planner=planner,
    )
    store.open()
    return store
