"""The gateway with the real conductor."""

from __future__ import annotations

import asyncio

import openai
import pytest


async def ask(client: openai.AsyncOpenAI, **fields) -> str:
    answer = await client.completions.create(model="tiny", prompt="fox", **fields)
    return answer.choices[0].text


async def until_counted(server, *, completed: int) -> None:
    """Reports travel in the background."""
    for _ in range(500):
        if server.statistics().completed == completed:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the report never came")


async def test_answers_and_teaches(conducted) -> None:
    cluster, server, client = conducted
    assert await ask(client) == "the lazy dog"
    assert len(cluster.prefill.requests) == 1
    await until_counted(server, completed=1)
    statistics = server.statistics()
    assert (statistics.in_flight, statistics.failed) == (0, 0)
    assert statistics.ttft_error > 0


async def test_dead_decode_worker_is_avoided_at_once(conducted) -> None:
    cluster, server, client = conducted
    for worker in (cluster.decode, cluster.spare):
        worker.fault_at, worker.fault = 2, die_once(cluster)
    assert await ask(client) == "the lazy dog"
    assert len(cluster.decode.requests) == len(cluster.spare.requests) == 1
    await until_counted(server, completed=1)
    assert server.statistics().in_flight == 0


def die_once(cluster):
    """Whichever decode worker is chosen first dies; the other one then works."""

    async def die() -> None:
        cluster.decode.fault_at = cluster.spare.fault_at = None

    return die


async def test_bypassed_cache_is_decoded_only(conducted) -> None:
    cluster, _, client = conducted
    assert await ask(client, extra_body={"cache": False}) == "the lazy dog"
    assert cluster.prefill.requests == []


async def test_conductor_gone(conducted) -> None:
    cluster, server, client = conducted
    await ask(client)
    await server.stop()
    for _ in range(4):  # the workers that were last seen take turns
        assert await ask(client) == "the lazy dog"
    assert len(cluster.decode.requests) + len(cluster.spare.requests) == 5
    assert min(len(cluster.decode.requests), len(cluster.spare.requests)) == 2
    url = str(client.base_url).replace("/v1/", "/health")
    async with asyncio.timeout(20):
        status = 200
        while status != 503:  # what is known is believed for a second
            status = (await client._client.get(url)).status_code


async def test_conductor_never_seen(cluster) -> None:
    await cluster.conductor.stop()
    with pytest.raises(openai.InternalServerError, match="conductor") as caught:
        await ask(cluster.openai)
    assert caught.value.status_code == 503
