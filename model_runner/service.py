"""Between a worker's RPC and its engine."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncGenerator

from kvstore.core.ids import RequestId
from model_runner.engine import Engine
from model_runner.engine_output import EngineOutput
from model_runner.generation import ServedModel, read_request
from model_runner.output_stream import OutputStream, merge_tokens
from model_runner.types import Request
from model_runner.wire.v1.generation_pb2 import GenerateRequest


class GenerationService:
    """Turns generation requests into streams of outputs. Any number of tasks on one event loop."""

    def __init__(self, engine: Engine, model: ServedModel) -> None:
        self._engine = engine
        self._model = model
        self._numbers = itertools.count()

    def read(self, message: GenerateRequest) -> Request:
        """Raises InvalidArgumentError. The id is made unique: a client may repeat one that is still
        being cancelled."""
        request_id = RequestId(f"{message.request_id}/{next(self._numbers)}")
        return read_request(message, request_id, self._model, lambda: secrets.randbits(64))

    async def stream(self, request: Request) -> AsyncGenerator[EngineOutput, None]:
        """Outputs of the request to the one with `published`; leaving earlier cancels it.

        Raises ResourceExhaustedError when the queue is full, and whatever ended the request.
        """
        outputs = OutputStream()
        self._engine.submit(request, outputs.put)
        try:
            while True:
                for output in merge_tokens(await outputs.take()):
                    if output.error is not None:
                        raise output.error
                    yield output
                    if output.published:
                        return
        finally:
            self._engine.cancel(request.request_id)
