"""The decode worker: fetches or computes prompts, and streams tokens."""

from __future__ import annotations

from decode_worker.scheduler import DecodeScheduler
from decode_worker.service import DecodeService
from decode_worker.wire.v1 import decode_pb2
from model_runner.config import WorkerConfig
from model_runner.worker import Worker, WorkerRole


class DecodeWorker(Worker):
    """Serves `DecodeService`. See `Worker` for its life."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config, _ROLE)


def _scheduler(config: WorkerConfig) -> DecodeScheduler:
    return DecodeScheduler(max_batch_tokens=config.max_batch_tokens, max_running=config.max_running)


_ROLE = WorkerRole(
    service=decode_pb2.DESCRIPTOR.services_by_name["DecodeService"],
    method="Generate",
    make_scheduler=_scheduler,
    make_handler=lambda generation: DecodeService(generation).generate,
)
