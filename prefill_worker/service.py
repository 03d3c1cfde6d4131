"""The Prefill RPC: a prompt's blocks into the store, and its first token to the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from google.protobuf.message import Message

from model_runner.engine_output import EngineOutput
from model_runner.generation import to_chunk
from model_runner.service import GenerationService
from model_runner.types import FinishReason, Request
from model_runner.wire.v1.generation_pb2 import GenerateChunk, GenerateRequest


class PrefillService:
    """Handlers of `PrefillService` in prefill.proto."""

    def __init__(self, generation: GenerationService) -> None:
        self._generation = generation

    async def prefill(self, message: Message) -> AsyncIterator[GenerateChunk]:
        """Prompt log probabilities if asked for; the token; `published`. With a finish reason, no
        decode is needed."""
        assert isinstance(message, GenerateRequest)
        request = self._generation.read(message)
        max_tokens = request.sampling.max_tokens
        _stop_after_one_token(request)
        async with aclosing(self._generation.stream(request)) as outputs:
            async for output in outputs:
                yield to_chunk(_unfinished_before(output, request, max_tokens))


def _stop_after_one_token(request: Request) -> None:
    request.sampling = replace(request.sampling, max_tokens=request.num_output_tokens + 1)


def _unfinished_before(output: EngineOutput, request: Request, max_tokens: int) -> EngineOutput:
    """Our own limit of one token is no reason for the answer to end."""
    ours = output.finish_reason is FinishReason.LENGTH and request.sampling.max_tokens < max_tokens
    return replace(output, finish_reason=None) if ours else output
