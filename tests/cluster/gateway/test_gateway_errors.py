"""Bad requests: status, and the error shape that OpenAI clients parse."""

from __future__ import annotations

import json

import openai
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def cluster(shared_cluster):
    return shared_cluster.reset()


COMPLETION = {"model": "tiny", "prompt": "fox"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


TOOL = {"type": "function", "function": {"name": "clock"}}


def image_message() -> dict[str, object]:
    part = {"type": "image_url", "image_url": {"url": "http://x"}}
    return {"role": "user", "content": [part]}


BAD_COMPLETIONS = [
    ({"model": None}, "model", "string"),
    ({"prompt": None}, "prompt", "must be a string"),
    ({"prompt": ""}, "prompt", "must not be empty"),
    ({"prompt": []}, "prompt", "must not be empty"),
    ({"prompt": [[]]}, "prompt", "must not be empty"),
    ({"prompt": [["fox"]]}, "prompt", "must be a string"),
    ({"prompt": [1, "fox"]}, "prompt", "must be a string"),
    ({"prompt": ["fox", 1]}, "prompt", "must be a string"),
    ({"prompt": [-1]}, "prompt", "must be a string"),
    ({"prompt": [2**32]}, "prompt", "must be a string"),
    ({"prompt": [True]}, "prompt", "must be a string"),
    ({"prompt": [[1], []]}, "prompt", "must be a string"),
    ({"prompt": {"text": "fox"}}, "prompt", "must be a string"),
    ({"max_tokens": "ten"}, "max_tokens", "integer"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": -1}, "max_tokens", "greater than or equal to 1"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"top_k": -1}, "top_k", "greater than or equal to 0"),
    ({"seed": "x"}, "seed", "integer"),
    ({"seed": 2**64}, "seed", "less than"),
    ({"stop": 1}, "stop", "list of up to 4"),
    ({"stop": ""}, "stop", "list of up to 4"),
    ({"stop": ["a"] * 5}, "stop", "list of up to 4"),
    ({"stop": ["a", 1]}, "stop", "list of up to 4"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 129}, "n", "less than or equal to 128"),
    ({"n": "1"}, "n", "integer"),
    ({"best_of": 3}, "best_of", "only best_of equal to n"),
    ({"suffix": "end"}, "suffix", "put the whole text into the prompt"),
    ({"response_format": {"type": "json_object"}}, "response_format", "describe the format"),
    ({"min_p": -0.1}, "min_p", "greater than or equal to 0"),
    ({"min_p": 1.1}, "min_p", "less than or equal to 1"),
    ({"presence_penalty": 2.1}, "presence_penalty", "less than or equal to 2"),
    ({"frequency_penalty": "x"}, "frequency_penalty", "number"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than or equal to 0.01"),
    ({"logit_bias": [1]}, "logit_bias", "must map up to 1024 token ids"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "must map up to 1024 token ids"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "must map up to 1024 token ids"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
    ({"logit_bias": {"1": True}}, "logit_bias", "from -100 to 100"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "up to 1024"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "list of up to 128 token ids"),
    ({"stop_token_ids": 5}, "stop_token_ids", "list of up to 128 token ids"),
    ({"stop_token_ids": [5] * 129}, "stop_token_ids", "list of up to 128 token ids"),
    ({"bad_words": "fox"}, "bad_words", "list of up to 256 non-empty strings"),
    ({"bad_words": [""]}, "bad_words", "list of up to 256 non-empty strings"),
    ({"priority": -101}, "priority", "greater than or equal to -100"),
    ({"priority": 101}, "priority", "less than or equal to 100"),
    ({"priority": "high"}, "priority", "integer"),
    ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
    ({"min_tokens": 17}, "min_tokens", "17 is more than the answer's 16"),
    ({"logprobs": -1}, "logprobs", "greater than or equal to 0"),
    ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
    ({"logprobs": True}, "logprobs", "integer"),
    ({"echo": 1}, "echo", "boolean"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": 1}, "stream_options", "valid"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "boolean"),
    ({"cache": "no"}, "cache", "boolean"),
    ({"ignore_eos": 1}, "ignore_eos", "boolean"),
    ({"user": 1}, "user", "string"),
]

BAD_CHATS = [
    ({"messages": None}, "messages", "list"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": ["hello"]}, "messages[0]", "valid"),
    ({"messages": [{"content": "hello"}]}, "messages[0].role", "required"),
    ({"messages": [{"role": "", "content": "x"}]}, "messages[0].role", "at least 1"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "must be a string"),
    ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content", "content part"),
    ({"messages": [image_message()]}, "messages[0].content", "'image_url' are not supported"),
    ({"messages": [{"role": "user"}]}, "messages", "chat template"),
    ({"logprobs": 1}, "logprobs", "boolean"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"tools": [TOOL]}, "tools", "takes none"),
    ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages", "at most 4096"),
    ({"audio": {"voice": "x"}}, "audio", "only text"),
    ({"modalities": ["audio"]}, "modalities", "only"),
    ({"structured_outputs": {"regex": "x"}}, "structured_outputs", "describe the format"),
    ({"slo_ttft_ms": 0}, "slo_ttft_ms", "greater than 0"),
    ({"slo_itl_ms": -1}, "slo_itl_ms", "greater than 0"),
    ({"slo_itl_ms": 1e9}, "slo_itl_ms", "less than or equal to 3600000"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
]


def is_error(response, status: int) -> dict[str, object]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert "x-request-id" in response.headers
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(("change", "param", "says"), BAD_COMPLETIONS)
async def test_bad_completion(cluster, change, param, says) -> None:
    body = COMPLETION | change
    error = is_error(await cluster.http.post("/v1/completions", json=body), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]
    assert error["message"].startswith(param)


@pytest.mark.parametrize(("change", "param", "says"), BAD_CHATS)
async def test_bad_chat(cluster, change, param, says) -> None:
    error = is_error(await cluster.http.post("/v1/chat/completions", json=CHAT | change), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]


@pytest.mark.parametrize("field", ["model", "prompt"])
async def test_missing_field(cluster, field) -> None:
    body = {key: value for key, value in COMPLETION.items() if key != field}
    error = is_error(await cluster.http.post("/v1/completions", json=body), 400)
    assert error["param"] == field


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b'{"model": "tiny", }', "not valid JSON"),
        (b"\xff\xfe", ""),
        (b'"tiny"', "JSON object"),
        (b"[1]", "JSON object"),
        (b"", "JSON object"),
        (b"[" * 100_000, ""),
        (b'{"model": "tiny", "prompt": "fox", "temperature": NaN}', "temperature"),
        (b'{"model": "tiny", "prompt": "fox", "seed": 1' + b"0" * 5000 + b"}", ""),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "prompt"),
    ],
)
async def test_malformed_body(cluster, body, says) -> None:
    response = await cluster.http.post(
        "/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert says in is_error(response, 400)["message"]
    assert (await cluster.http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("max_tokens", "prompt_tokens", "numbers"),
    [(None, 512, ["512"]), (None, 600, ["512", "600"]), (13, 500, ["512", "500", "513", "13"])],
)
async def test_context_length(cluster, max_tokens, prompt_tokens, numbers) -> None:
    body = COMPLETION | {"prompt": [5] * prompt_tokens, "max_tokens": max_tokens}
    error = is_error(await cluster.http.post("/v1/completions", json=body), 400)
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in numbers)


async def test_prompt_that_just_fits(cluster) -> None:
    body = COMPLETION | {"prompt": [5] * 511}
    response = await cluster.http.post("/v1/completions", json=body)
    assert response.status_code == 200
    assert cluster.prefill.requests[0].sampling.max_tokens == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_unknown_model(cluster, path) -> None:
    response = await cluster.http.post(path, json=COMPLETION | CHAT | {"model": "huge"})
    error = is_error(response, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "tiny" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/", 404), ("GET", "/v1/completions", 405)],
)
async def test_unknown_route_or_method(cluster, method, path, status) -> None:
    is_error(await cluster.http.request(method, path), status)


async def test_openai_client_reads_errors(cluster) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await cluster.openai.completions.create(model="huge", prompt="fox")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert caught.value.request_id


async def test_unpaired_surrogates_of_chat_are_refused(cluster) -> None:
    content = json.dumps(CHAT | {"messages": [{"role": "user", "content": "\ud800"}]})
    response = await cluster.http.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    is_error(response, 400)
