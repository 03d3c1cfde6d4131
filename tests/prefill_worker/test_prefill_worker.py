"""A prefill worker over real gRPC, and its hand-off to a decode worker through a real node."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from decode_worker.wire.v1.decode_pb2_grpc import DecodeServiceStub
from decode_worker.worker import DecodeWorker
from kvstore.core.errors import InvalidArgumentError
from kvstore.node.daemon import Node
from model_runner.wire.v1.generation_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_UNSPECIFIED,
    GenerateChunk,
    GenerateRequest,
    SamplingParams,
    TokenSequence,
)
from prefill_worker.wire.v1.prefill_pb2_grpc import PrefillServiceStub
from prefill_worker.worker import PrefillWorker

PROMPT = [7, 3, 9, 4, 11, 6, 8, 2, 15, 21, 13, 5, 19, 17, 23, 29, 31, 37]
DEADLINE_S = 30


def message(**fields: Any) -> GenerateRequest:
    sampling = {"max_tokens": 8, "ignore_eos": True} | fields.pop("sampling", {})
    defaults = {"request_id": "r", "model": "tiny", "prompt_token_ids": PROMPT}
    return GenerateRequest(**(defaults | fields), sampling=SamplingParams(**sampling))


async def prefill(worker: PrefillWorker, request: GenerateRequest) -> list[GenerateChunk]:
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        stub = PrefillServiceStub(channel)
        return [chunk async for chunk in stub.Prefill(request, timeout=DEADLINE_S)]


async def decode(worker: DecodeWorker, request: GenerateRequest) -> list[GenerateChunk]:
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        stub = DecodeServiceStub(channel)
        return [chunk async for chunk in stub.Generate(request, timeout=DEADLINE_S)]


def tokens_of(chunks: list[GenerateChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


async def test_prefill_worker_gives_a_token_then_says_published(
    start_worker: Any, reference: Any
) -> None:
    worker = await start_worker(PrefillWorker)
    token, published = await prefill(worker, message())
    assert list(token.token_ids) == reference(PROMPT, 1)
    assert token.finish_reason == FINISH_REASON_UNSPECIFIED
    assert token.HasField("hit_tokens")
    assert (token.published, published.published) == (False, True)


async def test_prefill_worker_says_when_no_decode_is_needed(
    start_worker: Any, reference: Any
) -> None:
    worker = await start_worker(PrefillWorker)
    (first,) = reference(PROMPT, 1)
    one, _ = await prefill(worker, message(sampling={"max_tokens": 1}))
    stop, _ = await prefill(worker, message(sampling={"stop_token_ids": [first]}))
    assert one.finish_reason == FINISH_REASON_LENGTH
    assert stop.finish_reason == FINISH_REASON_STOP


async def test_prefill_worker_checks_the_whole_request(start_worker: Any) -> None:
    worker = await start_worker(PrefillWorker)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await prefill(worker, message(sampling={"max_tokens": 250}))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("length", [1, 15, 16, 17, 18])
async def test_prefill_worker_hands_off_to_a_decode_worker(
    node: Node, start_worker: Any, reference: Any, length: int
) -> None:
    prompt = PROMPT[:length]
    first = await start_worker(PrefillWorker, node=node.zmq_endpoint, worker_id="p")
    second = await start_worker(DecodeWorker, node=node.zmq_endpoint, worker_id="d")
    token, _ = await prefill(first, message(prompt_token_ids=prompt))
    handed = message(prompt_token_ids=prompt, output_token_ids=token.token_ids)
    rest = await decode(second, handed)
    assert [*token.token_ids, *tokens_of(rest)] == reference(prompt, 8)
    assert rest[0].hit_tokens.host == length // 4 * 4


async def test_prefill_worker_sampling_goes_on_at_the_decode_worker(
    node: Node, start_worker: Any
) -> None:
    first = await start_worker(PrefillWorker, node=node.zmq_endpoint)
    second = await start_worker(DecodeWorker, node=node.zmq_endpoint)
    sampling = {"temperature": 1.5, "seed": 11, "max_tokens": 16}
    alone = tokens_of(await decode(second, message(sampling=sampling, bypass_cache=True)))
    token, _ = await prefill(first, message(sampling=sampling))
    handed = message(sampling=sampling, output_token_ids=token.token_ids)
    rest = tokens_of(await decode(second, handed))
    assert [*token.token_ids, *rest] == alone


EVERYTHING: dict[str, Any] = {
    "temperature": 1.4,
    "top_p": 0.95,
    "top_k": 80,
    "min_p": 0.001,
    "seed": 7,
    "max_tokens": 16,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.3,
    "logit_bias": {40: 2.0, 41: -3.0},
    "bad_words": [TokenSequence(token_ids=[50]), TokenSequence(token_ids=[40, 40])],
    "min_tokens": 12,
    "stop_token_ids": [1, 2, 3],
    "logprobs": 2,
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.0, 1.4])
async def test_prefill_worker_hands_off_all_that_sampling_needs(
    node: Node, start_worker: Any, seed: int, temperature: float
) -> None:
    """One worker alone and the two together: the same tokens, the same log probabilities."""
    sampling = EVERYTHING | {"seed": seed, "temperature": temperature}
    first = await start_worker(PrefillWorker, node=node.zmq_endpoint, worker_id="p")
    second = await start_worker(DecodeWorker, node=node.zmq_endpoint, worker_id="d")
    alone = await decode(second, message(sampling=sampling, bypass_cache=True))
    token, published = await prefill(first, message(sampling=sampling))
    assert published.published
    handed = message(sampling=sampling, output_token_ids=token.token_ids)
    rest = await decode(second, handed)
    assert rest[0].hit_tokens.host == 16
    assert [*token.token_ids, *tokens_of(rest)] == tokens_of(alone)
    split = [one for chunk in (token, *rest) for one in chunk.logprobs]
    whole = [one for chunk in alone for one in chunk.logprobs]
    assert len(split) == len(tokens_of(alone)) >= 12
    assert [list(one.top_token_ids) for one in split] == [list(o.top_token_ids) for o in whole]
    assert [one.logprob for one in split] == pytest.approx([o.logprob for o in whole], abs=1e-4)


async def test_prefill_worker_tells_a_prompts_logprobs_before_its_token(
    node: Node, start_worker: Any
) -> None:
    worker = await start_worker(PrefillWorker, node=node.zmq_endpoint, max_batch_tokens=8)
    await prefill(worker, message())
    *told, token, published = await prefill(
        worker, message(sampling={"prompt_logprobs": 1, "logprobs": 0})
    )
    assert sum(len(chunk.prompt_logprobs) for chunk in told) == len(PROMPT) - 1
    assert len(told) == 3  # of 8, 8 and 2 tokens
    assert len(token.logprobs) == 1
    assert token.hit_tokens.device == 0
    assert published.published


async def test_prefill_worker_names_what_is_wrong_with_the_sampling(start_worker: Any) -> None:
    worker = await start_worker(PrefillWorker)
    for sampling, says in (
        ({"min_tokens": 9}, "min_tokens must be from 0 to max_tokens (8)"),
        ({"logit_bias": {400_000: 1.0}}, "logit_bias must be of tokens from 0 to"),
        ({"bad_words": [TokenSequence()]}, "bad_words must be sequences of at least one token"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20"),
        ({"min_p": 1.5}, "min_p must be from 0 (off) to 1"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be finite, above 0"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await prefill(worker, message(sampling=sampling))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert says in (raised.value.details() or "")


async def test_prefill_worker_publishes_again_what_the_store_has_lost(
    node: Node, start_worker: Any, reference: Any
) -> None:
    """A device hit here is of no use to the decode worker."""
    first = await start_worker(PrefillWorker, node=node.zmq_endpoint)
    second = await start_worker(DecodeWorker, node=node.zmq_endpoint)
    await prefill(first, message())
    endpoint = node.zmq_endpoint
    await node.stop()
    empty = Node(node.config.model_copy(update={"zmq_endpoint": endpoint}))
    await empty.start()
    try:
        token, _ = await prefill(first, message())
        handed = message(output_token_ids=token.token_ids)
        rest = await decode(second, handed)
    finally:
        await second.stop()
        await first.stop()
        await empty.stop()
    assert token.hit_tokens.device == 16
    assert rest[0].hit_tokens.host == 16
    assert [*token.token_ids, *tokens_of(rest)] == reference(PROMPT, 8)


async def test_prefill_worker_without_its_node_still_answers(
    node: Node, start_worker: Any, reference: Any
) -> None:
    worker = await start_worker(PrefillWorker, node=node.zmq_endpoint, fetch_deadline_s=0.3)
    await node.stop()
    token, published = await prefill(worker, message())
    assert list(token.token_ids) == reference(PROMPT, 1)
    assert published.published


async def test_prefill_worker_tenants_share_nothing(node: Node, start_worker: Any) -> None:
    worker = await start_worker(PrefillWorker, node=node.zmq_endpoint)
    await prefill(worker, message(cache_salt="a"))
    other, _ = await prefill(worker, message(cache_salt="b"))
    same, _ = await prefill(worker, message(cache_salt="a"))
    assert other.hit_tokens.device == 0
    assert same.hit_tokens.device == 16


async def test_prefill_worker_whose_blocks_cannot_fit_in_the_store_does_not_start(
    node: Node, start_worker: Any
) -> None:
    with pytest.raises(InvalidArgumentError):
        await start_worker(
            PrefillWorker, node=node.zmq_endpoint, block_size_tokens=65_536, device_blocks=2
        )
