"""Sampling through the gateway: real workers, a real conductor, the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.conductor.config import ConductorConfig
from cluster.gateway.app import Gateway
from cluster.gateway.config import GatewayConfig
from cluster.launch.worker_member import WorkerMember
from cluster.membership.server import ConductorServer
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from model_runner.config import WorkerConfig
from model_runner.tiny import SMALL, build_checkpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXTS = [
    "the quick brown fox jumps over the lazy dog; a block of text, é 日本 🦊 to learn from"
] * 4
PROMPT = "the lazy dog jumps over a quick brown fox and a block of text"
CHAT: list[Any] = [{"role": "user", "content": "the quick brown fox"}]
HOT: dict[str, Any] = {
    "temperature": 1.3,
    "top_p": 0.95,
    "seed": 11,
    "max_tokens": 12,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.3,
    "logit_bias": {"40": 2, "41": -100},
    "extra_body": {
        "top_k": 100,
        "min_p": 0.001,
        "repetition_penalty": 1.1,
        "bad_words": ["fox"],
        "ignore_eos": True,
    },
}


@dataclass
class Front:
    """A gateway, and what is behind it."""

    openai: openai.AsyncOpenAI
    http: httpx.AsyncClient
    tokenizer: Any


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampling") / "tiny"
    return build_checkpoint(folder, texts=TEXTS, shape=SMALL)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


async def start_front(
    stack: AsyncExitStack, checkpoint: Path, node: Node, kinds: tuple[Any, ...]
) -> Front:
    server = ConductorServer(ConductorConfig(grpc_address="127.0.0.1:0"))
    await server.start()
    stack.push_async_callback(server.stop)
    for kind in kinds:
        member = WorkerMember(
            kind,
            WorkerConfig(
                worker_id=f"{kind}-0",
                model=str(checkpoint),
                block_size_tokens=4,
                device_blocks=128,
                node=node.zmq_endpoint,
                conductor=server.address,
            ),
        )
        await member.start()
        stack.push_async_callback(member.stop)
    gateway = Gateway(GatewayConfig(port=0, conductor=server.address), drain_s=0)
    await gateway.start()
    stack.push_async_callback(gateway.stop)
    client = openai.AsyncOpenAI(
        base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0, timeout=60
    )
    stack.push_async_callback(client.close)
    http = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.base_url, timeout=60))
    return Front(client, http, AutoTokenizer.from_pretrained(checkpoint))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fronts(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Front, Front]]:
    """One with prefill and decode apart, one with a decode worker alone."""
    folder = str(tmp_path_factory.mktemp("arena"))
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(2):
            config = {"host": "8MiB", "arena_folder": folder, "node_id": f"node-{number}"}
            nodes.append(Node(NodeConfig.model_validate(config)))
            await nodes[-1].start()
            stack.push_async_callback(nodes[-1].stop)
        apart = await start_front(stack, checkpoint, nodes[0], ("prefill", "decode"))
        alone = await start_front(stack, checkpoint, nodes[1], ("decode",))
        yield apart, alone


@pytest.fixture
def front(fronts: tuple[Front, Front]) -> Front:
    return fronts[0]


async def complete(front: Front, **fields: Any) -> Any:
    return await front.openai.completions.create(**({"model": "tiny", "prompt": PROMPT} | fields))


async def test_prefill_and_decode_apart_answer_as_one_worker_does(
    fronts: tuple[Front, Front],
) -> None:
    apart, alone = [await complete(front, **HOT, logprobs=3, n=2) for front in fronts]
    assert [c.text for c in apart.choices] == [c.text for c in alone.choices]
    for ours, theirs in zip(apart.choices, alone.choices, strict=True):
        assert ours.logprobs.tokens == theirs.logprobs.tokens
        assert ours.logprobs.token_logprobs == pytest.approx(
            theirs.logprobs.token_logprobs, abs=1e-4
        )
    assert apart.usage.completion_tokens == alone.usage.completion_tokens == 24


async def test_a_seed_gives_the_same_answer_and_another_one_does_not(front: Front) -> None:
    answers = [
        (await complete(front, **HOT | {"seed": seed})).choices[0].text for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


async def device_hits(front: Front) -> float:
    lines = (await front.http.get("/metrics")).text.splitlines()
    found = [one for one in lines if "hit_tokens_total" in one and 'tier="device"' in one]
    return float(found[0].split()[-1]) if found else 0.0


async def test_choices_share_the_prompts_blocks(front: Front) -> None:
    """`n` answers: other texts, one prompt in the usage, computed once."""
    prompt = "share and share alike: " + PROMPT
    before = await device_hits(front)
    answer = await complete(front, prompt=prompt, **HOT | {"n": 4})
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 4
    tokens = len(front.tokenizer.encode(prompt))
    assert answer.usage.prompt_tokens == tokens
    assert answer.usage.completion_tokens == 4 * 12
    assert answer.usage.prompt_tokens_details.cached_tokens < 4  # of the one that came first
    assert await device_hits(front) - before == 3 * ((tokens - 1) // 4 * 4)


async def test_the_first_choice_is_the_answer_to_a_request_for_one(front: Front) -> None:
    one, three = [await complete(front, **HOT | {"n": n}) for n in (1, 3)]
    assert three.choices[0].text == one.choices[0].text


async def test_several_prompts_with_several_choices(front: Front) -> None:
    answer = await complete(front, prompt=["the fox", "the dog"], **HOT | {"n": 2})
    alone = [await complete(front, prompt=p, **HOT | {"n": 2}) for p in ("the fox", "the dog")]
    assert [c.text for c in answer.choices] == [c.text for one in alone for c in one.choices]
    assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)


async def test_streamed_choices_are_the_whole_ones(front: Front) -> None:
    whole = await complete(front, **HOT, n=3, logprobs=1)
    stream = await complete(
        front, **HOT, n=3, logprobs=1, stream=True, stream_options={"include_usage": True}
    )
    texts, tokens, values = ["", "", ""], [[], [], []], [[], [], []]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs:
                tokens[choice.index] += choice.logprobs.tokens
                values[choice.index] += choice.logprobs.token_logprobs
        usage = chunk.usage
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert [v for of_one in values for v in of_one] == pytest.approx(
        [v for choice in whole.choices for v in choice.logprobs.token_logprobs], abs=1e-4
    )
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


async def test_chat_logprobs(front: Front, reference: Any) -> None:
    answer = await front.openai.chat.completions.create(
        model="tiny",
        messages=CHAT,
        temperature=0,
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
        extra_body={"ignore_eos": True},
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 5
    prompt = front.tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_dict=False
    )
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    best = expected.topk(3)
    first = content[0]
    assert first.logprob == pytest.approx(float(best.values[0]), abs=1e-4)
    assert [t.logprob for t in first.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert first.token == first.top_logprobs[0].token
    data = b"".join(bytes(token.bytes) for token in content)
    assert data.decode(errors="replace").startswith(answer.choices[0].message.content[:3])


@pytest.mark.parametrize("asked", [{"logprobs": True}, {}], ids=["own only", "none"])
async def test_chat_stream_logprobs(front: Front, asked: dict[str, Any]) -> None:
    stream = await front.openai.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=6, seed=3, stream=True,
        extra_body={"ignore_eos": True}, **asked,
    )  # fmt: skip
    told = [c.choices[0].logprobs async for c in stream]
    tokens = [token for one in told if one for token in one.content]
    assert len(tokens) == (6 if asked else 0)
    assert all(token.top_logprobs == [] for token in tokens)


async def test_echo_tells_the_prompts_logprobs(front: Front, reference: Any) -> None:
    ids = front.tokenizer.encode(PROMPT)
    for _ in range(2):  # the second time, the prompt is cached
        answer = await complete(
            front, temperature=0, max_tokens=2, echo=True, logprobs=2,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        told = answer.choices[0].logprobs
        assert answer.choices[0].text.startswith(PROMPT)
        assert len(told.tokens) == len(ids) + 2
        assert told.token_logprobs[0] is None
        assert told.top_logprobs[0] is None
        with torch.inference_mode():
            logits = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = logits[:-1].gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)
        assert told.token_logprobs[1 : len(ids)] == pytest.approx(expected.tolist(), abs=1e-4)
        assert all(2 <= len(best) <= 3 for best in told.top_logprobs[1:])
        text = answer.choices[0].text
        for token, offset in zip(told.tokens, told.text_offset, strict=True):
            if not token.startswith(("bytes:", "<|")):
                assert text[offset : offset + len(token)] == token


async def test_echo_without_logprobs(front: Front) -> None:
    stream = await complete(front, echo=True, max_tokens=2, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text.startswith(PROMPT)


async def test_logprobs_and_usage_end_with_the_stop_string(front: Front) -> None:
    """Tokens that a worker computed behind it count for nothing."""
    free = await complete(front, **HOT | {"max_tokens": 40}, logprobs=0)
    tokens, text = free.choices[0].logprobs.tokens, free.choices[0].text
    stop = text[len(text) // 3 : len(text) // 3 + 4]
    answer = await complete(front, **HOT | {"max_tokens": 40}, logprobs=0, stop=stop)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")
    count = answer.usage.completion_tokens
    assert choice.logprobs.tokens == tokens[:count]
    assert 0 < count < 40


async def test_stop_token_ids_and_min_tokens(front: Front, reference: Any) -> None:
    prompt = [5, 6, 7]
    with torch.inference_mode():
        ids = reference.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, 3), max_new_tokens=8,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )[0, 3:].tolist()  # fmt: skip
    greedy: dict[str, Any] = {"prompt": prompt, "temperature": 0, "max_tokens": 8}
    stop = {"stop_token_ids": [ids[2]], "ignore_eos": True}
    stopped = await complete(front, **greedy, extra_body=stop)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens == ids.index(ids[2]) + 1
    held = await complete(front, **greedy, extra_body=stop | {"min_tokens": 6})
    assert held.usage.completion_tokens > 6 or held.choices[0].finish_reason == "length"


async def test_bad_words_do_not_come(front: Front) -> None:
    free = await complete(front, **HOT | {"max_tokens": 30}, logprobs=0)
    told = free.choices[0].logprobs.tokens
    word = next(token for token in told if token.isascii() and token.strip().isalpha()).strip()
    banned = HOT["extra_body"] | {"bad_words": [word]}
    answer = await complete(front, **HOT | {"max_tokens": 30, "extra_body": banned}, logprobs=0)
    assert word not in [token.strip() for token in answer.choices[0].logprobs.tokens]


async def test_a_biased_token_is_what_comes(front: Front) -> None:
    (token,) = front.tokenizer.encode("x", add_special_tokens=False)
    answer = await complete(front, max_tokens=5, temperature=0, logit_bias={str(token): 100})
    assert answer.choices[0].text == "xxxxx"


async def test_what_a_worker_refuses_is_a_bad_request(front: Front) -> None:
    with pytest.raises(openai.BadRequestError, match=r"logit_bias must be of tokens from 0 to"):
        await complete(front, logit_bias={"400000": 1})
