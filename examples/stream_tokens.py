"""Stream tokens from a decode worker over gRPC, with a deadline and cancellation.

    kvstore decode --model ./model                       # prints grpc_address=HOST:PORT
    python examples/stream_tokens.py HOST:PORT ./model "Once upon a time"
    python examples/stream_tokens.py HOST:PORT ./model "Once upon a time" --sync --stop-after 5

Workers take token ids: the tokenizer is the client's, loaded from the model's folder.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from pathlib import Path

import grpc
from transformers import AutoTokenizer

from decode_worker.wire.v1.decode_pb2_grpc import DecodeServiceStub
from model_runner.wire.v1.generation_pb2 import GenerateRequest, SamplingParams


async def stream(address: str, request: GenerateRequest, deadline_s: float) -> AsyncIterator[int]:
    """Tokens as they are sampled. Closing the iterator cancels the request at the worker."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = DecodeServiceStub(channel).Generate(request, timeout=deadline_s)
        try:
            async for chunk in call:
                for token in chunk.token_ids:
                    yield token
        finally:
            call.cancel()  # of no effect if the stream has ended


def stream_sync(address: str, request: GenerateRequest, deadline_s: float) -> Iterator[int]:
    """The same without an event loop."""
    with grpc.insecure_channel(address) as channel:
        call = DecodeServiceStub(channel).Generate(request, timeout=deadline_s)
        try:
            for chunk in call:
                yield from chunk.token_ids
        finally:
            call.cancel()


async def show(tokens: AsyncIterator[int], printed: Printed, stop_after: int) -> None:
    async with aclosing(tokens):
        async for token in tokens:
            if printed.add(token) == stop_after:
                break  # closes the iterator, and so cancels


def show_sync(tokens: Iterator[int], printed: Printed, stop_after: int) -> None:
    with closing(tokens):
        for token in tokens:
            if printed.add(token) == stop_after:
                break


class Printed:
    """Text as it becomes known: a token may be half of a character, or need a space before it."""

    def __init__(self, tokenizer) -> None:
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
        self._text = ""

    def add(self, token: int) -> int:
        """Returns how many tokens there are."""
        self.tokens.append(token)
        text = self._tokenizer.decode(self.tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[len(self._text) :], end="", flush=True)
            self._text = text
        return len(self.tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="host:port of the worker")
    parser.add_argument("model", type=Path, help="the folder that it serves")
    parser.add_argument("prompt")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--deadline", type=float, default=30, help="seconds for the whole answer")
    parser.add_argument("--stop-after", type=int, default=0, help="cancel after so many tokens")
    parser.add_argument("--sync", action="store_true", help="without an event loop")
    asked = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    request = GenerateRequest(
        request_id="stream-tokens",
        model=asked.model.resolve().name,  # the name that a worker serves a folder under
        prompt_token_ids=tokenizer.encode(asked.prompt),
        sampling=SamplingParams(max_tokens=asked.max_tokens),
    )
    printed = Printed(tokenizer)
    try:
        if asked.sync:
            answer = stream_sync(asked.address, request, asked.deadline)
            show_sync(answer, printed, asked.stop_after)
        else:
            streamed = stream(asked.address, request, asked.deadline)
            asyncio.run(show(streamed, printed, asked.stop_after))
    except grpc.RpcError as error:
        print(f"\n{error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    print(f"\n{len(printed.tokens)} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
