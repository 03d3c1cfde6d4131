"""Workers that die, clients that leave, a cluster that is full."""

from __future__ import annotations

import asyncio
import socket

import openai
import pytest

from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core import errors


async def ask(cluster, **fields) -> str:
    answer = await cluster.openai.completions.create(model="tiny", prompt="fox", **fields)
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].text


async def read_stream(cluster) -> str:
    stream = await cluster.openai.completions.create(model="tiny", prompt="fox", stream=True)
    return "".join([chunk.choices[0].text async for chunk in stream])


async def nothing() -> None:
    """The fault that is only an error status."""


async def test_prefill_worker_dead_before_its_first_token(cluster) -> None:
    await cluster.prefill.stop()
    assert await ask(cluster) == "the lazy dog"
    assert list(cluster.decode.requests[0].output_token_ids) == []


async def test_prefill_worker_dying_before_its_first_token(cluster) -> None:
    cluster.prefill.fault_at, cluster.prefill.fault = 0, cluster.prefill.stop
    assert await ask(cluster) == "the lazy dog"


@pytest.mark.parametrize("how", ["error", "server gone"])
async def test_prefill_worker_dying_before_it_has_published(cluster, how) -> None:
    cluster.prefill.publish_fault = nothing if how == "error" else cluster.prefill.stop
    assert await ask(cluster) == "the lazy dog"
    assert list(cluster.decode.requests[0].output_token_ids) == cluster.script.token_ids[:1]


async def test_publishing_that_hangs_is_not_waited_for(cluster, monkeypatch) -> None:
    monkeypatch.setattr("cluster.gateway.handoff.PUBLISH_WAIT_S", 0.05)
    cluster.prefill.publish_fault = asyncio.Event().wait
    assert await ask(cluster) == "the lazy dog"


def on_one_host(cluster) -> None:
    cluster.conductor.prefill.node_id = cluster.conductor.decode[0].node_id = "node-0"


async def test_on_one_host_decoding_does_not_wait_for_publishing(cluster, caplog) -> None:
    on_one_host(cluster)
    cluster.prefill.publish = cluster.decode.asked.wait
    assert await ask(cluster) == "the lazy dog"
    assert "not published" not in caplog.text
    assert not cluster.prefill.cancelled.is_set()


async def test_elsewhere_decoding_waits_for_publishing(cluster) -> None:
    asked: list[int] = []

    async def a_while() -> None:
        await asyncio.sleep(0.2)
        asked.append(len(cluster.decode.requests))

    cluster.conductor.prefill.node_id, cluster.conductor.decode[0].node_id = "node-0", "node-1"
    cluster.prefill.publish = a_while
    assert await ask(cluster) == "the lazy dog"
    assert asked == [0]


async def test_on_one_host_publishing_that_fails_is_no_failure(cluster, caplog) -> None:
    on_one_host(cluster)
    cluster.prefill.publish_fault = nothing
    assert await ask(cluster) == "the lazy dog"
    assert caplog.text.count("did not publish") == 1


async def test_on_one_host_publishing_that_hangs_ends_with_its_time(cluster, monkeypatch) -> None:
    monkeypatch.setattr("cluster.gateway.handoff.PUBLISH_WAIT_S", 0.05)
    on_one_host(cluster)
    cluster.prefill.publish = asyncio.Event().wait
    assert await ask(cluster) == "the lazy dog"
    await asyncio.wait_for(cluster.prefill.cancelled.wait(), 10)


async def test_on_one_host_a_client_that_leaves_ends_publishing_too(cluster) -> None:
    on_one_host(cluster)
    cluster.prefill.publish = asyncio.Event().wait
    cluster.decode.fault_at, cluster.decode.fault = 2, asyncio.Event().wait
    stream = await cluster.openai.completions.create(model="tiny", prompt="fox", stream=True)
    async for _ in stream:
        break
    await asyncio.wait_for(cluster.decode.asked.wait(), 10)
    await stream.close()
    await asyncio.wait_for(cluster.prefill.cancelled.wait(), 10)
    await asyncio.wait_for(cluster.decode.cancelled.wait(), 10)


@pytest.mark.parametrize("fault_at", [1, 3], ids=["before its first token", "mid-stream"])
@pytest.mark.parametrize("how", ["error", "server gone"])
async def test_decode_worker_dying_is_not_seen(cluster, fault_at, how) -> None:
    cluster.answers("the quick brown fox jumps")
    cluster.decode.fault_at = fault_at
    cluster.decode.fault = nothing if how == "error" else cluster.decode.stop
    assert await ask(cluster) == "the quick brown fox jumps"
    (retry,) = cluster.spare.requests
    assert list(retry.output_token_ids) == cluster.script.token_ids[:fault_at]
    assert retry.sampling == cluster.decode.requests[0].sampling


async def test_decode_worker_dying_is_not_seen_in_a_stream(cluster) -> None:
    cluster.answers("the quick brown fox jumps")
    cluster.decode.fault_at, cluster.decode.fault = 4, cluster.decode.stop
    assert await read_stream(cluster) == "the quick brown fox jumps"


async def test_detour_teaches_the_conductor_nothing(cluster) -> None:
    cluster.decode.fault_at, cluster.decode.fault = 2, nothing
    await ask(cluster)
    first, second = cluster.conductor.routes
    assert first == second
    assert await cluster.conductor.completions.get() == conductor.CompleteRequest(
        request_id=first.request_id, output_tokens=len(cluster.script.token_ids) + 1
    )
    assert cluster.conductor.completions.empty()


async def test_failure_is_reported(cluster) -> None:
    cluster.decode.refusal = cluster.spare.refusal = errors.UnavailableError("gone")
    with pytest.raises(openai.InternalServerError):
        await ask(cluster)
    assert (await cluster.conductor.completions.get()).failed


async def test_retry_follows_the_conductor_where_it_names_another(cluster) -> None:
    cluster.decode.fault_at, cluster.decode.fault = 2, nothing
    cluster.conductor.decode = [cluster.conductor.members[1], cluster.conductor.members[2]]
    assert await ask(cluster) == "the lazy dog"
    assert len(cluster.conductor.routes) == 2
    assert len(cluster.spare.requests) == 1


async def test_conductor_lost_during_a_retry(cluster) -> None:
    async def both_die() -> None:
        await cluster.conductor.stop()

    cluster.decode.fault_at, cluster.decode.fault = 2, both_die
    assert await ask(cluster) == "the lazy dog"
    assert len(cluster.spare.requests) == 1


async def test_no_way_left_is_an_error_after_one_retry(cluster) -> None:
    cluster.decode.refusal = cluster.spare.refusal = errors.UnavailableError("gone")
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(cluster)
    assert caught.value.status_code == 503
    assert len(cluster.decode.requests) == len(cluster.spare.requests) == 1


async def test_error_after_the_stream_began_is_an_event(cluster) -> None:
    for worker in (cluster.decode, cluster.spare):
        worker.fault_at, worker.fault = 2, nothing
    with pytest.raises(openai.APIError, match="the worker died"):
        await read_stream(cluster)


async def test_full_prefill_worker_is_backpressure(cluster) -> None:
    cluster.prefill.refusal = errors.ResourceExhaustedError("256 requests wait already")
    with pytest.raises(openai.RateLimitError, match="256 requests wait") as caught:
        await ask(cluster)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert cluster.decode.requests == []


async def test_full_decode_worker_passes_on_to_another(cluster) -> None:
    cluster.decode.refusal = errors.ResourceExhaustedError("256 requests wait already")
    assert await ask(cluster) == "the lazy dog"


async def test_full_decode_worker_is_backpressure_where_it_is_alone(cluster) -> None:
    cluster.conductor.members.pop()
    cluster.decode.refusal = errors.ResourceExhaustedError("256 requests wait already")
    with pytest.raises(openai.RateLimitError):
        await ask(cluster)
    assert len(cluster.decode.requests) == 1


async def test_request_at_fault_is_not_retried(cluster) -> None:
    cluster.prefill.refusal = errors.InvalidArgumentError("token id 999 is not in the vocabulary")
    with pytest.raises(openai.BadRequestError, match="token id 999"):
        await ask(cluster)
    assert cluster.decode.requests == []


@pytest.mark.parametrize("gateway_settings", [{"request_timeout_s": 0.3}])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_request_timeout(cluster, stream) -> None:
    hang = cluster.prefill if not stream else cluster.decode
    hang.fault_at, hang.fault = (1 if stream else 0), asyncio.Event().wait
    with pytest.raises(openai.APIError) as caught:
        await (read_stream(cluster) if stream else ask(cluster))
    assert caught.value.body["code"] == "timeout"
    if not stream:
        assert caught.value.status_code == 504
    await hang.cancelled.wait()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("where", ["prefill", "decode"])
async def test_client_that_leaves_cancels_the_worker(cluster, stream, where) -> None:
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    worker = getattr(cluster, where)
    worker.fault_at, worker.fault = (0 if where == "prefill" else 2), hang
    body = {"model": "tiny", "prompt": "fox", "stream": stream}
    asking = asyncio.ensure_future(cluster.http.post("/v1/completions", json=body))
    await reached.wait()
    asking.cancel()
    await worker.cancelled.wait()
    assert cluster.spare.requests == []


async def test_slot_of_a_client_that_left_is_free_again(cluster) -> None:
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    cluster.decode.fault_at, cluster.decode.fault = 2, hang
    body = {"model": "tiny", "prompt": "fox", "stream": True}
    asking = asyncio.ensure_future(cluster.http.post("/v1/completions", json=body))
    await reached.wait()
    assert "kvstore_gateway_in_flight 1.0" in (await cluster.http.get("/metrics")).text
    asking.cancel()
    await cluster.conductor.completions.get()
    for _ in range(100):
        if "kvstore_gateway_in_flight 0.0" in (await cluster.http.get("/metrics")).text:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the slot was never given back")


@pytest.mark.parametrize("gateway_settings", [{"max_in_flight": 1}])
async def test_requests_beyond_the_bound_are_refused(cluster) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await go_on.wait()

    cluster.decode.fault_at, cluster.decode.fault = 2, wait
    first = asyncio.ensure_future(ask(cluster))
    await reached.wait()
    with pytest.raises(openai.RateLimitError) as caught:
        await ask(cluster)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    go_on.set()
    assert await first == "the lazy dog"
    cluster.decode.fault_at = None
    assert await ask(cluster) == "the lazy dog"


@pytest.mark.parametrize("gateway_settings", [{"max_in_flight": 2}])
async def test_more_prompts_than_ever_fit(cluster) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 2 prompts"):
        await cluster.openai.completions.create(model="tiny", prompt=["a", "b", "c"])
    with pytest.raises(openai.BadRequestError, match="lower n"):
        await cluster.openai.completions.create(model="tiny", prompt="a", n=3)


async def test_conductor_down(cluster) -> None:
    await cluster.conductor.stop()
    with pytest.raises(openai.InternalServerError, match="conductor") as caught:
        await ask(cluster)
    assert caught.value.status_code == 503


async def test_raw_disconnect_mid_stream(cluster) -> None:
    """As a browser does it: the socket is closed between two tokens."""
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    cluster.decode.fault_at, cluster.decode.fault = 2, hang
    host, port = cluster.gateway.base_url.removeprefix("http://").split(":")
    body = b'{"model": "tiny", "prompt": "fox", "stream": true}'
    reader, writer = await asyncio.open_connection(host, int(port), family=socket.AF_INET)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    assert b"200 OK" in await reader.readline()
    await reached.wait()
    writer.close()
    await cluster.decode.cancelled.wait()


async def test_stop_ends_open_streams(cluster) -> None:
    cluster.decode.fault_at, cluster.decode.fault = 2, asyncio.Event().wait
    stream = await cluster.openai.completions.create(model="tiny", prompt="fox", stream=True)
    await anext(stream.__aiter__())
    await cluster.gateway.stop()
    await cluster.decode.cancelled.wait()
    assert (await cluster.conductor.completions.get()).output_tokens == 2
    await stream.close()
