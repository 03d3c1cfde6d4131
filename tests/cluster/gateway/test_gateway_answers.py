"""Answers as the official client sees them."""

from __future__ import annotations

import asyncio

import openai
import pytest

from kvstore.core.hashing import block_hashes

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def cluster(shared_cluster):
    return shared_cluster.reset()


CHAT = [{"role": "user", "content": "hello there"}]


async def test_completion_is_the_scripted_text(cluster) -> None:
    answer = await cluster.openai.completions.create(model="tiny", prompt="fox", temperature=0)
    assert answer.choices[0].text == "the lazy dog"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")


async def test_chat_is_the_scripted_text(cluster) -> None:
    answer = await cluster.openai.chat.completions.create(model="tiny", messages=CHAT)
    assert answer.choices[0].message.content == "the lazy dog"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"


async def test_sync_client(cluster) -> None:
    def ask() -> str | None:
        with openai.OpenAI(
            base_url=f"{cluster.gateway.base_url}/v1", api_key="none", max_retries=0
        ) as client:
            answer = client.chat.completions.create(model="tiny", messages=CHAT)
            return answer.choices[0].message.content

    assert await asyncio.to_thread(ask) == "the lazy dog"


async def test_chat_prompt_goes_through_the_template(cluster) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]
    await cluster.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}]
    )
    prompt = cluster.tokenizer.decode(cluster.prefill.requests[0].prompt_token_ids)
    assert prompt == "<|user|>hello\nthere\n<|assistant|>"


async def test_usage_tells_hits_by_tier(cluster) -> None:
    answer = await cluster.openai.completions.create(model="tiny", prompt=list(range(1, 21)))
    usage = answer.usage
    assert usage.prompt_tokens == 20
    assert usage.completion_tokens == len(cluster.script.token_ids) + 1  # EOS is computed too
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 10
    hits = usage.prompt_tokens_details.model_extra["hit_tokens"]
    assert hits == {"device": 1, "host": 2, "disk": 3, "remote": 4}


async def test_without_a_prefill_worker_hits_are_the_decode_workers(cluster) -> None:
    cluster.decode_only()
    answer = await cluster.openai.completions.create(model="tiny", prompt=list(range(1, 21)))
    assert answer.choices[0].text == "the lazy dog"
    assert answer.usage.prompt_tokens_details.model_extra["hit_tokens"]["host"] == 8
    assert cluster.prefill.requests == []


async def test_decode_goes_on_after_the_first_token(cluster) -> None:
    await cluster.openai.completions.create(model="tiny", prompt="fox")
    assert list(cluster.prefill.requests[0].output_token_ids) == []
    assert list(cluster.decode.requests[0].output_token_ids) == cluster.script.token_ids[:1]
    assert cluster.decode.requests[0].sampling == cluster.prefill.requests[0].sampling


async def test_one_token_needs_no_decode_worker(cluster) -> None:
    answer = await cluster.openai.completions.create(model="tiny", prompt="fox", max_tokens=1)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 1
    assert cluster.decode.requests == []


async def test_stop_as_first_token_needs_no_decode_worker(cluster) -> None:
    cluster.script.token_ids = []
    answer = await cluster.openai.completions.create(model="tiny", prompt="fox")
    assert answer.choices[0].text == ""
    assert answer.choices[0].finish_reason == "stop"
    assert cluster.decode.requests == []


async def test_length_ends_the_answer(cluster) -> None:
    answer = await cluster.openai.completions.create(model="tiny", prompt="fox", max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    expected = cluster.tokenizer.decode(cluster.script.token_ids[:2])
    assert answer.choices[0].text == expected


@pytest.mark.parametrize(
    "prompt", ["fox", ["fox"], [5, 6, 7], [[5, 6, 7]]], ids=["text", "texts", "ids", "id lists"]
)
async def test_prompt_forms(cluster, prompt) -> None:
    await cluster.openai.completions.create(model="tiny", prompt=prompt)
    expected = cluster.tokenizer.encode("fox") if "fox" in prompt else [5, 6, 7]
    assert list(cluster.prefill.requests[0].prompt_token_ids) == expected


async def test_several_prompts_are_several_choices(cluster) -> None:
    answer = await cluster.openai.completions.create(model="tiny", prompt=["fox", "dog", "the"])
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.text for choice in answer.choices} == {"the lazy dog"}
    assert answer.usage.prompt_tokens_details.cached_tokens == 30
    assert len({r.request_id for r in cluster.prefill.requests}) == 3


async def test_sampling_fields_reach_the_worker(cluster) -> None:
    await cluster.openai.chat.completions.create(
        model="tiny",
        messages=CHAT,
        temperature=0.5,
        top_p=0.25,
        seed=7,
        max_completion_tokens=9,
        user="someone",
        extra_body={"top_k": 3, "ignore_eos": True, "cache": False, "unheard_of": 1},
    )
    request = cluster.prefill.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 3)
    assert (sampling.seed, sampling.max_tokens, sampling.ignore_eos) == (7, 9, True)
    assert request.bypass_cache


@pytest.mark.parametrize(
    ("asked", "passed"), [({"priority": -7}, 7), ({"priority": 3}, -3), ({}, 0)]
)
async def test_priority_reaches_conductor_and_workers(cluster, asked, passed) -> None:
    """The smaller one goes first to clients, the larger one inside."""
    await cluster.openai.completions.create(model="tiny", prompt="fox", extra_body=asked)
    told = [*cluster.conductor.routes, *cluster.prefill.requests, *cluster.decode.requests]
    assert [one.priority for one in told] == [passed] * 3


async def test_every_sampling_field_reaches_the_worker(cluster) -> None:
    await cluster.openai.completions.create(
        model="tiny",
        prompt="fox",
        n=2,
        seed=7,
        max_tokens=9,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"5": 1.5},
        extra_body={
            "min_p": 0.25,
            "repetition_penalty": 1.5,
            "min_tokens": 3,
            "stop_token_ids": [8, 9],
            "bad_words": ["fox"],
        },
    )
    first, second = sorted(cluster.prefill.requests, key=lambda request: request.request_id)
    sampling = first.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.25, 1.5)
    assert (sampling.min_tokens, list(sampling.stop_token_ids)) == (3, [8, 9])
    assert dict(sampling.logit_bias) == {5: 1.5}
    words = [list(word.token_ids) for word in sampling.bad_words]
    assert words == [cluster.tokenizer.encode("fox"), cluster.tokenizer.encode(" fox")]
    assert not sampling.HasField("logprobs")
    assert not sampling.HasField("prompt_logprobs")
    assert sampling.seed == 7
    assert second.sampling.seed != 7
    second.sampling.seed = 7
    assert second.sampling == sampling


async def test_choices_of_a_prompt_are_routed_once(cluster) -> None:
    answer = await cluster.openai.completions.create(model="tiny", prompt=["fox", "dog"], n=3)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len(cluster.conductor.routes) == 2
    assert len({request.request_id for request in cluster.prefill.requests}) == 6
    assert len({request.sampling.seed for request in cluster.prefill.requests}) == 6
    assert answer.usage.completion_tokens == 6 * (len(cluster.script.token_ids) + 1)
    assert answer.usage.prompt_tokens_details.cached_tokens <= answer.usage.prompt_tokens * 10


async def test_workers_that_do_not_tell_logprobs_are_no_defect_of_the_gateway(cluster) -> None:
    """As of an older version: the error says so."""
    for fields in ({"logprobs": 1}, {"logprobs": 1, "echo": True}):
        body = {"model": "tiny", "prompt": "fox"} | fields
        response = await cluster.http.post("/v1/completions", json=body)
        assert response.status_code == 500
        assert "run one version only" in response.json()["error"]["message"]


async def test_min_tokens_go_before_stop_strings(cluster) -> None:
    tokens = len(cluster.tokenizer.encode("the"))
    answer = await cluster.openai.completions.create(
        model="tiny", prompt="fox", stop="the", extra_body={"min_tokens": tokens}
    )
    assert answer.choices[0].text == "the lazy dog"


async def test_defaults_are_those_of_openai(cluster) -> None:
    await cluster.openai.completions.create(model="tiny", prompt=[1, 2, 3])
    await cluster.openai.chat.completions.create(model="tiny", messages=CHAT)
    completion, chat = (request for request in cluster.prefill.requests)
    assert completion.sampling.temperature == chat.sampling.temperature == 1.0
    assert completion.sampling.max_tokens == 16
    assert chat.sampling.max_tokens == 512 - len(chat.prompt_token_ids)
    assert completion.sampling.HasField("seed")
    assert completion.sampling.seed != chat.sampling.seed


async def test_null_means_not_given(cluster) -> None:
    body = {"model": "tiny", "prompt": "fox"} | dict.fromkeys(
        ["temperature", "top_p", "seed", "stop", "n", "max_tokens", "stream", "cache", "user"]
    )
    response = await cluster.http.post("/v1/completions", json=body)
    assert response.status_code == 200
    assert cluster.prefill.requests[0].sampling.temperature == 1.0


async def test_route_request_carries_the_prefix_hash_chain(cluster) -> None:
    await cluster.openai.completions.create(model="tiny", prompt=list(range(11)), max_tokens=5)
    (route,) = cluster.conductor.routes
    hashes = block_hashes(cluster.model.identity_root, list(range(11)), 4)
    assert len(hashes) == 2
    assert route.routing_keys == hashes[0][:8] + hashes[1][:8]
    assert (route.prompt_tokens, route.max_tokens) == (11, 5)


async def test_bypassed_cache_routes_without_keys(cluster) -> None:
    await cluster.openai.completions.create(
        model="tiny", prompt=list(range(11)), extra_body={"cache": False}
    )
    (route,) = cluster.conductor.routes
    assert route.routing_keys == b""
    assert route.bypass_cache


async def test_conductor_learns_how_it_went(cluster) -> None:
    await cluster.openai.completions.create(model="tiny", prompt=list(range(1, 21)))
    (route,) = cluster.conductor.routes
    report = await cluster.conductor.completions.get()
    while report.request_id != route.request_id:  # of tests before this one
        report = await cluster.conductor.completions.get()
    assert not report.failed
    assert report.output_tokens == len(cluster.script.token_ids) + 1
    assert report.computed_tokens == 20 - 10
    assert report.prefill_compute_s == 0.25
    assert report.ttft_s > 0
    assert report.itl_mean_s > 0


async def test_headers_name_workers_and_request(cluster) -> None:
    response = await cluster.http.post(
        "/v1/completions",
        json={"model": "tiny", "prompt": "fox"},
        headers={"x-request-id": "from-the-client"},
    )
    assert response.headers["x-request-id"] == "from-the-client"
    assert response.headers["x-kvstore-prefill-worker"] == "prefill-0"
    assert response.headers["x-kvstore-decode-worker"] == "decode-0"


@pytest.mark.parametrize("given", [None, "x" * 200, "caf\xe9"])
async def test_request_id_is_drawn_where_none_is_usable(cluster, given) -> None:
    headers = {} if given is None else {"x-request-id": given.encode("latin-1")}
    first = await cluster.http.get("/health", headers=headers)
    second = await cluster.http.get("/health", headers=headers)
    assert first.headers["x-request-id"].startswith("req-")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_large_prompts_are_prepared_on_a_thread(cluster) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 500
    response = await cluster.http.post("/v1/completions", json={"model": "tiny", "prompt": text})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
