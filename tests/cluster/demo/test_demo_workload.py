from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.demo.trace import TraceRequest, synthetic_trace
from cluster.demo.workload import (
    QUESTIONS,
    WorkloadSize,
    chat_request,
    comparison_requests,
    expand,
    token_run,
    trace_request,
    trace_requests,
)

ids = st.lists(st.integers(0, 10**9), min_size=1, max_size=40)
vocab_sizes = st.integers(9, 200_000)


@given(ids, ids, vocab_sizes)
def test_prompts_agree_as_far_as_their_hash_ids(
    common: list[int], rest: list[int], vocab_size: int
) -> None:
    short = expand(common, 32 * len(common), vocab_size)
    long = expand(common + rest, 32 * len(common + rest), vocab_size)
    assert long[: len(short)] == short
    assert long[len(short) :] == expand(rest, 32 * len(rest), vocab_size)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_hash_ids_have_different_runs(a: int, b: int) -> None:
    same = token_run(f"hash id {a}", 32, 4096) == token_run(f"hash id {b}", 32, 4096)
    assert same == (a == b)


@given(st.text(max_size=20), st.integers(0, 300), st.integers(0, 300), vocab_sizes)
def test_longer_run_begins_with_the_shorter(seed: str, m: int, n: int, vocab_size: int) -> None:
    short, long = sorted((m, n))
    run = token_run(seed, long, vocab_size)
    assert len(run) == long
    assert all(8 <= token < vocab_size for token in run)
    assert run[:short] == token_run(seed, short, vocab_size)


@given(st.integers(0, 200_000), st.integers(0, 5_000), st.integers(64, 2_048), st.integers(1, 64))
def test_traced_request_fits_the_context(
    input_length: int, output_length: int, context: int, output_tokens: int
) -> None:
    size = WorkloadSize(context_tokens=context, trace_output_tokens=min(output_tokens, context - 1))
    hash_ids = tuple(range(-(-input_length // 512) or 1))
    request = trace_request(size, 0, TraceRequest(0, input_length, output_length, hash_ids))
    assert 1 <= len(request.prompt) <= context - request.max_tokens
    assert 1 <= request.max_tokens <= output_tokens


def test_trace_part_is_filled_up_until_it_touches_enough_blocks() -> None:
    size = WorkloadSize(trace_requests=2, trace_blocks=200)
    requests = trace_requests(size, synthetic_trace(2))
    assert sum(len(r.prompt) for r in requests) >= 200 * size.block_size_tokens
    assert len({r.prompt for r in requests}) == len(requests) > 2


def test_comparison_asks_the_same_in_every_phase_and_leaves_few_tokens_to_compute() -> None:
    size = WorkloadSize()
    cold, warm = comparison_requests(size, "cold"), comparison_requests(size, "warm disk")
    assert [r.prompt for r in cold] == [r.prompt for r in warm]
    assert {r.phase for r in warm} == {"warm disk"}
    for request in cold:
        beyond = len(request.prompt) % size.block_size_tokens
        assert 0 < beyond < 0.1 * len(request.prompt)


def test_chat_turn_goes_on_from_the_answers_before() -> None:
    size = WorkloadSize()
    user = next(iter(QUESTIONS))
    first = chat_request(size, user, 0, [])
    third = chat_request(size, user, 2, ["one", "two"])
    assert third.messages[: len(first.messages)] == first.messages
    assert [m["role"] for m in third.messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert [m["content"] for m in third.messages if m["role"] == "assistant"] == ["one", "two"]
