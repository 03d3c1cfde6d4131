"""`GET /v1/explain/{request}`, with the scripted conductor and with the real one."""

from __future__ import annotations

import asyncio

import openai
import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.gateway.journal import Journal, RequestRecord
from cluster.gateway.tenants import Tenant
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.errors import (
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)

PROMPT = list(range(1, 21))


async def ask(client: openai.AsyncOpenAI, **fields):
    return await client.completions.create(model="tiny", prompt=PROMPT, **fields)


async def explained(cluster, name: str):
    response = await cluster.http.get(f"/v1/explain/{name}")
    assert response.status_code == 200
    return response.json()


async def test_by_the_id_of_the_answer_and_of_the_request(cluster) -> None:
    cluster.conductor.chosen = conductor.Candidate(
        member_id="prefill-0", ttft_s=1.5, queue_s=1, prefill_s=0.5, host_tokens=8, cached_tokens=8
    )
    answer = await ask(cluster.openai, extra_headers={"x-request-id": "mine"})
    told = await explained(cluster, answer.id)
    assert told == await explained(cluster, "mine")
    assert (told["id"], told["request_id"]) == (answer.id, "mine")
    assert (told["tenant"], told["model"]) == ("default", "tiny")
    (generation,) = told["generations"]
    assert generation["prompt_tokens"] == 20
    assert generation["output_tokens"] == answer.usage.completion_tokens
    decision = generation["decision"]
    assert (decision["prefill"], decision["decode"]) == ("prefill-0", "decode-0")
    assert decision["predicted"]["ttft_s"] == 1.5
    assert decision["candidates"] == [decision["chosen"]]
    assert decision["chosen"]["queue_s"] == 1
    assert decision["chosen"]["host_tokens"] == 8
    assert generation["worked"] == {"prefill": "prefill-0", "decode": "decode-0"}
    assert generation["hit_tokens"] == {"device": 1, "host": 2, "disk": 3, "remote": 4}
    assert generation["missed_blocks"] == {"evicted": 2}
    assert generation["observed"]["ttft_s"] > 0
    assert generation["error"] is None


async def test_as_text(cluster) -> None:
    answer = await ask(cluster.openai, n=2)
    headers = {"accept": "text/plain"}
    response = await cluster.http.get(f"/v1/explain/{answer.id}", headers=headers)
    assert response.headers["content-type"].startswith("text/plain")
    for words in (
        f"{answer.id}-0:",
        f"{answer.id}-1:",
        "prefill prefill-0",
        "disk 3",
        "evicted 2",
        "ttft_s",
    ):
        assert words in response.text


async def test_a_detour_shows(cluster) -> None:
    async def die() -> None:
        cluster.conductor.decode = [cluster.conductor.members[2]]

    cluster.decode.fault_at, cluster.decode.fault = 2, die
    answer = await ask(cluster.openai)
    (generation,) = (await explained(cluster, answer.id))["generations"]
    assert generation["decision"]["decode"] == "decode-0"
    assert generation["worked"]["decode"] == "decode-1"


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (OverloadedError("too busy", retry_after_s=1), "too busy"),
        (InvalidArgumentError("odd"), "odd"),
    ],
)
async def test_a_refused_request_is_explained(cluster, refusal, says) -> None:
    cluster.conductor.refusal = refusal
    with pytest.raises(openai.APIStatusError):
        await ask(cluster.openai, extra_headers={"x-request-id": "refused"})
    (generation,) = (await explained(cluster, "refused"))["generations"]
    assert generation["decision"] is None
    assert says in generation["error"]


async def test_unknown_requests(cluster) -> None:
    for name in ("nothing", "a/b", "%00", "x" * 1000):
        response = await cluster.http.get(f"/v1/explain/{name}")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"


async def test_the_conductors_terms(conducted) -> None:
    cluster, server, client = conducted
    answer = await ask(client)
    base_url = str(client.base_url).removesuffix("/v1/")
    told = (await cluster.http.get(f"{base_url}/v1/explain/{answer.id}")).json()
    terms = told["generations"][0]["conductor"]
    assert terms["refused"] is None
    assert terms["decode"] == told["generations"][0]["decision"]["decode"]
    assert {one["member_id"] for one in terms["decodes"]} == {"decode-0", "decode-1"}
    assert {one["member_id"] for one in terms["prefills"]} == {"prefill-0"}
    assert all(one["itl_s"] > 0 for one in terms["decodes"])
    await server.stop()
    told = (await cluster.http.get(f"{base_url}/v1/explain/{answer.id}")).json()
    assert told["generations"][0]["conductor"] is None
    assert told["generations"][0]["decision"] is not None


async def test_absurd_targets_are_refused_with_their_reason(conducted) -> None:
    cluster, _, client = conducted
    with pytest.raises(openai.RateLimitError, match="time to first token") as caught:
        await ask(client, extra_headers={"x-slo-ttft-ms": "1e-6", "x-request-id": "absurd"})
    assert int(caught.value.response.headers["retry-after"]) >= 1
    base_url = str(client.base_url).removesuffix("/v1/")
    headers = {"accept": "text/plain"}
    response = await cluster.http.get(f"{base_url}/v1/explain/absurd", headers=headers)
    assert "refused: time to first token" in response.text
    assert "decode workers:" in response.text


def why(*arguments: str):
    return CliRunner().invoke(app, ["why", *arguments])


async def test_kvstore_why(cluster, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    answer = await ask(cluster.openai)
    at = ("--gateway", cluster.gateway.base_url)
    text = await asyncio.to_thread(why, answer.id, *at)
    assert text.exit_code == 0
    assert text.stdout.startswith(answer.id)
    told = await asyncio.to_thread(why, answer.id, "--json", *at)
    assert told.stdout.strip() == (await cluster.http.get(f"/v1/explain/{answer.id}")).text
    unknown = await asyncio.to_thread(why, "nothing", *at)
    assert isinstance(unknown.exception, NotFoundError)
    assert "nothing is not among" in str(unknown.exception)
    port = cluster.gateway.base_url.rpartition(":")[2]
    configured = await asyncio.to_thread(why, answer.id, "--set", f"gateway.port={port}")
    assert configured.exit_code == 0


def test_kvstore_why_without_a_gateway(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("http://127.0.0.1:1", "http://127.0.0.1:x", "http://\u2603:1"):
        answer = why("x", "--gateway", url)
        assert isinstance(answer.exception, UnavailableError)
    assert "write http://" in str(why("x", "--gateway", "file:///etc/passwd").exception)
    assert "--gateway" in str(why("x", "--set", "gateway.port=0").exception)


def test_the_journal_is_bounded_and_the_latest_counts() -> None:
    journal = Journal(3)
    anybody = Tenant("t", "", is_admin=False)
    for number in range(5):
        journal.open(RequestRecord(f"answer-{number}", f"request-{number % 2}", "t", "m"))
    assert journal.find("answer-1", anybody) is None
    assert journal.find("answer-2", anybody) is not None
    assert journal.find("request-0", anybody).answer_id == "answer-4"
    assert journal.find("answer-4", Tenant("other", "", is_admin=False)) is None
    assert journal.find("answer-4", Tenant("other", "", is_admin=True)) is not None
