"""For tests: a worker in a process of its own, which stands still where it is told to, to be killed
there."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeAlias

from kvstore.client.sync import SyncReservation
from model_runner.config import WorkerConfig
from model_runner.runner import ModelRunner
from model_runner.worker import Worker

_START_S = 60.0

MakeWorker: TypeAlias = Callable[[WorkerConfig], Worker]
"""A class that can be imported."""


@dataclass(frozen=True, slots=True)
class StandsStill:
    """Where the process stops for good."""

    before_step: int | None = None
    """Counted from 1."""
    before_commit: bool = False
    """With the first blocks written and not visible."""


@dataclass(frozen=True)
class WorkerProcess:
    grpc_address: str
    _process: ForkServerProcess

    def kill(self) -> None:
        """It is gone when this returns."""
        self._process.kill()
        self._process.join()


@contextmanager
def worker_process(
    make_worker: MakeWorker,
    config: WorkerConfig,
    stands_still: StandsStill,
    preload: Sequence[str] = (),
) -> Iterator[WorkerProcess]:
    """A started worker; killed at the end. `preload` names modules that are imported once, for all
    such processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(make_worker, config, stands_still, theirs), daemon=True
    )
    process.start()
    theirs.close()
    try:
        assert ours.poll(_START_S), "the worker did not start in time"
        yield WorkerProcess(ours.recv(), process)
    finally:
        process.kill()
        process.join()
        ours.close()


def _serve(
    make_worker: MakeWorker, config: WorkerConfig, stands_still: StandsStill, pipe: Connection
) -> None:
    if stands_still.before_step is not None:
        _stop_before(ModelRunner, "forward", stands_still.before_step)
    if stands_still.before_commit:
        _stop_before(SyncReservation, "commit", 1)
    asyncio.run(_run(make_worker(config), pipe))


async def _run(worker: Worker, pipe: Connection) -> None:
    await worker.start()
    pipe.send(worker.grpc_address)
    await asyncio.Event().wait()


def _stop_before(owner: type, name: str, call: int) -> None:
    real, calls = getattr(owner, name), iter(range(1, call))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            threading.Event().wait()
        return real(*args, **kwargs)

    setattr(owner, name, counted)
