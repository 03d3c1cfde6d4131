"""Streams of tokens: chunks, stop strings, usage at the end."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def cluster(shared_cluster):
    return shared_cluster.reset()


CHAT = [{"role": "user", "content": "hello there"}]


async def test_completion_stream(cluster) -> None:
    stream = await cluster.openai.completions.create(model="tiny", prompt="fox", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "the lazy dog"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len(chunks) > 2
    assert len({chunk.id for chunk in chunks}) == 1


async def test_chat_stream(cluster) -> None:
    stream = await cluster.openai.chat.completions.create(model="tiny", messages=CHAT, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.role for c in chunks[1:]] == [None] * (len(chunks) - 1)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "the lazy dog"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("route", ["completions", "chat"])
async def test_usage_comes_last_when_asked_for(cluster, route) -> None:
    create = (
        cluster.openai.completions.create(
            model="tiny", prompt="fox", stream=True, stream_options={"include_usage": True}
        )
        if route == "completions"
        else cluster.openai.chat.completions.create(
            model="tiny", messages=CHAT, stream=True, stream_options={"include_usage": True}
        )
    )
    chunks = [chunk async for chunk in await create]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(cluster.script.token_ids) + 1
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 10
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_raw_stream_is_server_sent_events(cluster) -> None:
    cluster.answers("a\n\ndata: b\n")
    response = await cluster.http.post(
        "/v1/completions", json={"model": "tiny", "prompt": "fox", "stream": True}
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-kvstore-prefill-worker"] == "prefill-0"
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    bodies = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(body["choices"][0]["text"] for body in bodies) == "a\n\ndata: b\n"


async def test_streams_of_several_prompts_are_merged(cluster) -> None:
    stream = await cluster.openai.completions.create(
        model="tiny", prompt=["fox", "dog"], stream=True
    )
    texts, finished = ["", ""], []
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
        if chunk.choices[0].finish_reason:
            finished.append(chunk.choices[0].index)
    assert texts == ["the lazy dog", "the lazy dog"]
    assert sorted(finished) == [0, 1]


async def test_characters_are_never_split(cluster) -> None:
    cluster.answers("né 日本 🦊!")
    stream = await cluster.openai.completions.create(
        model="tiny", prompt="fox", stream=True, max_tokens=100
    )
    texts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(texts) == "né 日本 🦊!"
    assert not any("\ufffd" in text for text in texts)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("azy d", "the l"),
        (["zzz", " dog", "lazy"], "the "),
        ("the", ""),
        ("dog!", "the lazy dog"),
    ],
    ids=["across tokens", "first of several", "at the start", "never complete"],
)
async def test_stop_strings(cluster, stop, expected, stream) -> None:
    answer = await cluster.openai.completions.create(
        model="tiny", prompt="fox", stop=stop, stream=stream
    )
    if stream:
        chunks = [chunk async for chunk in answer]
        text = "".join(chunk.choices[0].text for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert (text, reason) == (expected, "stop")


async def test_stop_string_cancels_the_worker(cluster) -> None:
    cluster.script.token_ids = cluster.tokenizer.encode("the lazy dog")
    cluster.decode.fault_at = len(cluster.script.token_ids)
    cluster.decode.fault = cluster.decode.cancelled.wait  # hangs until it is cancelled
    answer = await cluster.openai.completions.create(model="tiny", prompt="fox", stop="dog")
    assert answer.choices[0].text == "the lazy "
    await cluster.decode.cancelled.wait()
