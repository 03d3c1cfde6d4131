"""The Generate RPC: a stream of tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from google.protobuf.message import Message

from model_runner.generation import to_chunk
from model_runner.service import GenerationService
from model_runner.wire.v1.generation_pb2 import GenerateChunk, GenerateRequest


class DecodeService:
    """Handlers of `DecodeService` in decode.proto."""

    def __init__(self, generation: GenerationService) -> None:
        self._generation = generation

    async def generate(self, message: Message) -> AsyncIterator[GenerateChunk]:
        """Tokens as they come; the chunk with a finish reason is the last."""
        assert isinstance(message, GenerateRequest)
        request = self._generation.read(message)
        async with aclosing(self._generation.stream(request)) as outputs:
            async for output in outputs:
                yield to_chunk(output)
                if output.finish_reason is not None:
                    return
