"""/tokenize and /detokenize, in vLLM's shape."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def cluster(shared_cluster):
    return shared_cluster.reset()


CHAT = [{"role": "user", "content": "hello"}]


async def tokenize(cluster, **body):
    return await cluster.http.post("/tokenize", json={"model": "tiny"} | body)


async def test_there_and_back(cluster) -> None:
    told = (await tokenize(cluster, prompt="the lazy fox")).json()
    assert told["tokens"] == cluster.tokenizer.encode("the lazy fox")
    assert told["count"] == len(told["tokens"])
    assert told["max_model_len"] == 512
    assert told["token_strs"] is None
    body = {"model": "tiny", "tokens": told["tokens"]}
    back = await cluster.http.post("/detokenize", json=body)
    assert back.json() == {"prompt": "the lazy fox"}


async def test_where_one_model_is_served_it_need_not_be_named(cluster) -> None:
    told = await cluster.http.post("/tokenize", json={"prompt": "fox", "return_token_strs": True})
    assert len(told.json()["token_strs"]) == told.json()["count"]
    assert (await cluster.http.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


async def test_a_chat_is_tokenized_as_it_would_be_served(cluster) -> None:
    await cluster.openai.chat.completions.create(model="tiny", messages=CHAT)
    told = (await tokenize(cluster, messages=CHAT)).json()
    assert told["tokens"] == list(cluster.prefill.requests[0].prompt_token_ids)
    bare = (await tokenize(cluster, messages=CHAT, add_generation_prompt=False)).json()
    assert bare["count"] < told["count"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, 400, "prompt"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "huge"}, 404, "model"),
        ("/tokenize", {"messages": [{"role": "user"}]}, 400, "messages"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens"),
        ("/detokenize", {"tokens": [2**31]}, 400, "tokens"),
        ("/detokenize", {"tokens": [2**64]}, 400, "tokens"),
    ],
)
async def test_bad_input(cluster, path, body, status, param) -> None:
    response = await cluster.http.post(path, json=body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
