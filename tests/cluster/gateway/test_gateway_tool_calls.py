"""Tools: through the chat template to the model, and its calls back to the client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count

import openai
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cluster.gateway.tool_calls import CLOSE, OPEN, ToolCall, ToolCallReader

CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}{{ '<tool_call> is how to call: ' + tools | tojson + '\n' }}{% endif %}"
    "{% if quiet %}{{ 'quiet\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.arguments.zone }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '\n' }}{% endfor %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "clock",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
        },
    }
]
CHAT = [{"role": "user", "content": "what time is it"}]


def read(*texts: str) -> tuple[str, list[ToolCall]]:
    numbers = count()
    reader = ToolCallReader(lambda: f"call_{next(numbers)}")
    parts = [part for text in texts for part in reader.push(text)]
    content = "".join(part for part in parts if isinstance(part, str)) + reader.flush()
    calls = [part for part in parts if isinstance(part, ToolCall)]
    assert reader.num_calls == len(calls)
    return content, calls


CLOCK = ToolCall(0, "call_0", "clock", '{"zone": "UTC"}')


@pytest.mark.parametrize(
    ("text", "content", "num_calls"),
    [
        ("", "", 0),
        ("no call", "no call", 0),
        (CALL, "", 1),
        (f"It is\n\n{CALL}\n", "It is", 1),
        (f"{CALL}\n{CALL}", "", 2),
        (f"{CALL} then text ", "then text ", 1),
        ("ends in space \n", "ends in space \n", 0),
        (CALL.removesuffix(CLOSE), CALL.removesuffix(CLOSE), 0),
        ("<tool_call>clock()</tool_call>", "<tool_call>clock()</tool_call>", 0),
        ('<tool_call>{"name": "clock"}</tool_call>', '<tool_call>{"name": "clock"}</tool_call>', 0),
        ('<tool_call>{"name": "", "arguments": {}}</tool_call>', None, 0),
        ('<tool_call>{"name": "x", "arguments": {"a": NaN}}</tool_call>', None, 0),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", None, 0),
        ("<tool_cal", "<tool_cal", 0),
        ("a < b <t", "a < b <t", 0),
    ],
)
def test_calls_are_read_and_all_else_stays_text(text, content, num_calls) -> None:
    told, calls = read(text)
    assert told == (text if content is None else content)
    assert calls == [
        ToolCall(i, f"call_{i}", CLOCK.name, CLOCK.arguments) for i in range(num_calls)
    ]


PIECES = st.lists(
    st.sampled_from([OPEN, CLOSE, CALL, "<", "<tool", " ", "\n", "{}", "a", '"', "é"]), max_size=8
).map("".join)


@given(PIECES, st.lists(st.integers(1, 9), min_size=1))
def test_how_a_text_is_cut_changes_nothing(text, lengths) -> None:
    cut, at = [], 0
    while at < len(text):
        cut.append(text[at : at + lengths[len(cut) % len(lengths)]])
        at += len(cut[-1])
    assert read(*cut) == read(text)


@given(PIECES)
def test_text_without_a_call_is_left_as_it_is(text) -> None:
    content, calls = read(text)
    if not calls:
        assert content == text


@pytest.fixture(scope="module")
def tool_tokenizer(tokenizer_path, tmp_path_factory) -> tuple[str, PreTrainedTokenizerFast]:
    """Marks of a call are special tokens, as some vocabularies have them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
    tokenizer.add_special_tokens({"additional_special_tokens": [OPEN, CLOSE]})
    tokenizer.chat_template = TEMPLATE
    path = str(tmp_path_factory.mktemp("tools"))
    tokenizer.save_pretrained(path)
    return path, tokenizer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calling(tool_tokenizer, cluster_of) -> AsyncIterator:
    path, tokenizer = tool_tokenizer
    async with cluster_of(tokenizer, path) as running:
        yield running


@pytest.fixture
def cluster(calling):
    cluster = calling.reset()
    cluster.answers(f"It is\n{CALL}\n{CALL}")
    return cluster


in_module = pytest.mark.asyncio(loop_scope="module")


def prompt_of(cluster) -> str:
    return cluster.tokenizer.decode(cluster.prefill.requests[0].prompt_token_ids)


async def ask(cluster, **fields):
    asked = {"model": "tiny", "messages": CHAT, "tools": TOOLS} | fields
    return await cluster.openai.chat.completions.create(**asked)


@in_module
async def test_calls_reach_the_client(cluster) -> None:
    choice = (await ask(cluster)).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "It is"
    assert [call.function.name for call in choice.message.tool_calls] == ["clock", "clock"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"zone": "UTC"}
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert json.dumps(TOOLS) in prompt_of(cluster)


@in_module
async def test_calls_reach_the_streaming_client(cluster) -> None:
    stream = await ask(cluster, stream=True, n=2)
    text, calls, reasons = ["", ""], [[], []], ["", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
            calls[choice.index] += choice.delta.tool_calls or []
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert text == ["It is", "It is"]
    assert reasons == ["tool_calls", "tool_calls"]
    for of_one in calls:
        assert [call.index for call in of_one] == [0, 1]
        assert of_one[0].function.name == "clock"
        assert json.loads(of_one[0].function.arguments) == {"zone": "UTC"}


@in_module
async def test_openai_puts_the_streamed_calls_together(cluster) -> None:
    async with cluster.openai.chat.completions.stream(
        model="tiny", messages=CHAT, tools=TOOLS
    ) as stream:
        final = await stream.get_final_completion()
    assert len(final.choices[0].message.tool_calls) == 2


@in_module
async def test_one_call_only_if_asked_for(cluster) -> None:
    choice = (await ask(cluster, parallel_tool_calls=False)).choices[0]
    assert len(choice.message.tool_calls) == 1


@in_module
async def test_without_tools_a_call_is_text(cluster) -> None:
    for fields in ({"tools": openai.NOT_GIVEN}, {"tool_choice": "none"}):
        cluster.prefill.reset()
        choice = (await ask(cluster, **fields)).choices[0]
        assert choice.finish_reason == "stop"
        assert choice.message.tool_calls is None
        assert "clock" in choice.message.content
        assert "is how to call" not in prompt_of(cluster)


@in_module
async def test_only_a_call_has_no_content(cluster) -> None:
    cluster.answers(CALL)
    message = (await ask(cluster)).choices[0].message
    assert message.content is None
    assert len(message.tool_calls) == 1


@in_module
async def test_a_call_that_was_cut_off_is_text(cluster) -> None:
    choice = (await ask(cluster, max_tokens=12)).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert "<tool_call>" in choice.message.content


@in_module
async def test_turns_of_a_conversation_with_tools(cluster) -> None:
    first = (await ask(cluster)).choices[0].message
    cluster.prefill.reset()
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "noon"}
    await ask(cluster, messages=[*CHAT, first, result])
    assert prompt_of(cluster).endswith("<|assistant|>UTCUTC\n<|tool|>noon\n")


@in_module
async def test_variables_of_the_template(cluster) -> None:
    await ask(cluster, extra_body={"chat_template_kwargs": {"quiet": True}})
    assert "quiet\n" in prompt_of(cluster)


@in_module
@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"tool_choice": "required"}, "tool_choice", "'auto' and 'none'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "'auto' and 'none'"),
        ({"tools": "clock"}, "tools", "list"),
        ({"tools": [{"type": "code"}]}, "tools[0].type", "must be 'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
            "pattern",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
            "JSON object",
        ),
        ({"tools": TOOLS * 129}, "tools", "at most 128"),
        ({"functions": [{}]}, "functions", "use tools"),
        ({"function_call": "auto"}, "function_call", "use tool_choice"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs", "JSON object"),
        ({"chat_template_kwargs": {"tokenize": 0}}, "chat_template_kwargs", "'tokenize'"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "cannot be set"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "'messages'"),
    ],
)
async def test_bad_tools(cluster, change, param, says) -> None:
    body = {"model": "tiny", "messages": CHAT} | change
    response = await cluster.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


@in_module
@pytest.mark.parametrize("arguments", ["{", "[]", 1, None, '"x"', '{"a": "\\ud800"}'])
async def test_arguments_of_an_earlier_call_must_be_an_object(cluster, arguments) -> None:
    function = {"name": "clock", "arguments": arguments}
    turn = {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}
    body = {"model": "tiny", "messages": [*CHAT, turn]}
    response = await cluster.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    param = response.json()["error"]["param"]
    assert param == "messages[1].tool_calls[0].function.arguments"
