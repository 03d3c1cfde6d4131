"""The prefill worker: computes prompts and publishes their blocks."""

from __future__ import annotations

from model_runner.config import WorkerConfig
from model_runner.worker import Worker, WorkerRole
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.service import PrefillService
from prefill_worker.wire.v1 import prefill_pb2


class PrefillWorker(Worker):
    """Serves `PrefillService`. See `Worker` for its life."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config, _ROLE)


def _scheduler(config: WorkerConfig) -> PrefillScheduler:
    return PrefillScheduler(
        max_batch_tokens=config.max_batch_tokens, max_running=config.max_running
    )


_ROLE = WorkerRole(
    service=prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"],
    method="Prefill",
    make_scheduler=_scheduler,
    make_handler=lambda generation: PrefillService(generation).prefill,
)
