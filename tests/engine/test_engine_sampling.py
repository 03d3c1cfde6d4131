"""The engine's sampling: the same tokens on every path, log probabilities, twins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import RequestId
from kvstore.tiers.base import TierKind
from model_runner.engine import Engine
from model_runner.engine_output import EngineOutput
from model_runner.inventory import RecordedInventory
from model_runner.kv_groups import BlockTable
from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.step import ForwardChunk
from model_runner.store import NullStore
from model_runner.types import FinishReason, Request, SamplingParams

PROMPT = [7, 3, 9, 4, 11, 6, 8, 2, 15, 21, 13, 5, 19, 17, 23, 29, 31, 37]
DEADLINE_S = 60.0
EVERYTHING = SamplingParams(
    temperature=1.4,
    top_p=0.95,
    top_k=80,
    min_p=0.001,
    seed=5,
    max_tokens=14,
    ignore_eos=True,
    stop_token_ids=frozenset({1}),
    repetition_penalty=1.2,
    presence_penalty=0.4,
    frequency_penalty=0.3,
    logit_bias={40: 2.0, 41: -3.0},
    bad_words=((50,), (40, 40), (7, 3)),
    min_tokens=14,
    logprobs=2,
)


@dataclass
class Answer:
    """Collects what the engine emits."""

    outputs: list[EngineOutput] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, output: EngineOutput) -> None:
        self.outputs.append(output)
        if output.published or output.error or output.finish_reason is FinishReason.CANCELLED:
            self.over.set()

    def wait(self) -> Answer:
        assert self.over.wait(DEADLINE_S)
        return self

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [one for output in self.outputs for one in output.logprobs]

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs]:
        return [one for output in self.outputs for one in output.prompt_logprobs]

    @property
    def hits(self) -> dict[TierKind, int]:
        return next(dict(o.first.hit_tokens) for o in self.outputs if o.first)


_NUMBERS = iter(range(1_000_000))


def request(
    params: SamplingParams, prompt: Sequence[int] = PROMPT, output: Sequence[int] = ()
) -> Request:
    return Request(
        RequestId(str(next(_NUMBERS))),
        [*prompt, *output],
        len(prompt),
        params,
        identity_root=bytes(32),
    )


class Counted:
    """A runner that says how much it was given to compute; its forward can be held up."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.groups, self.caches = runner.groups, runner.caches
        self.eos_token_ids = runner.eos_token_ids
        self.num_tokens = 0
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def forward(self, chunks: Sequence[ForwardChunk], *on_layer: Any) -> torch.Tensor:
        self.entered.set()
        assert self.go.wait(DEADLINE_S)
        self.sizes.append(sum(len(chunk.token_ids) for chunk in chunks))
        self.num_tokens += self.sizes[-1]
        return self._runner.forward(chunks, *on_layer)


Start = Callable[..., Engine]


@pytest.fixture
def start() -> Iterator[Start]:
    engines: list[Engine] = []

    def start(model: Any, max_batch_tokens: int = 64) -> Engine:
        scheduler = DecodeScheduler(max_batch_tokens=max_batch_tokens, max_running=8)
        sink = RecordedInventory(model.groups[0].layout.fingerprint)
        engines.append(Engine(model, scheduler, NullStore(), sink, max_live=64))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def run(engine: Engine, *requests: Request) -> list[Answer]:
    answers = [Answer() for _ in requests]
    for one, answer in zip(requests, answers, strict=True):
        engine.submit(one, answer)
    return [answer.wait() for answer in answers]


def same_logprobs(ours: Sequence[TokenLogprobs], theirs: Sequence[TokenLogprobs]) -> bool:
    """But for rounding: batches of other shapes add up in other orders."""
    values, expected = ([one.logprob for one in told] for told in (ours, theirs))
    return len(values) == len(expected) and torch.allclose(
        torch.tensor(values), torch.tensor(expected), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("max_batch_tokens", [1, 5, 64])
def test_engine_chunk_size_does_not_matter(
    make_runner: Any, start: Start, max_batch_tokens: int
) -> None:
    (whole,) = run(start(make_runner()), request(EVERYTHING))
    (chunked,) = run(start(make_runner(), max_batch_tokens), request(EVERYTHING))
    assert len(whole.tokens) == 14
    assert chunked.tokens == whole.tokens
    assert same_logprobs(chunked.logprobs, whole.logprobs)


def test_engine_preempted_samples_go_on_as_if_nothing_had_happened(
    make_runner: Any, start: Start
) -> None:
    params = [replace(EVERYTHING, seed=seed, max_tokens=20) for seed in range(4)]
    prompts = [[60 + i * 20 + j for j in range(12)] for i in range(4)]
    roomy = start(make_runner())
    alone = [run(roomy, request(p, prompt))[0] for p, prompt in zip(params, prompts, strict=True)]
    requests = [request(p, prompt) for p, prompt in zip(params, prompts, strict=True)]
    together = run(start(make_runner(device_blocks=14)), *requests)
    assert sum(one.num_preemptions for one in requests) > 0
    assert [a.tokens for a in together] == [a.tokens for a in alone]


@pytest.mark.parametrize("handed", [1, 6])
def test_engine_goes_on_where_another_worker_stopped(
    make_runner: Any, start: Start, handed: int
) -> None:
    """Penalties count the tokens that were handed over as output, and the stream goes on."""
    (whole,) = run(start(make_runner()), request(EVERYTHING))
    (rest,) = run(start(make_runner()), request(EVERYTHING, PROMPT, whole.tokens[:handed]))
    assert rest.tokens == whole.tokens[handed:]
    assert same_logprobs(rest.logprobs, whole.logprobs[handed:])


any_params = st.builds(
    lambda seed, hot, **fields: replace(
        EVERYTHING, seed=seed, temperature=1.4 if hot else 0.0, min_tokens=0, **fields
    ),
    seed=st.integers(0, 2**64 - 1),
    hot=st.booleans(),
    max_tokens=st.integers(1, 10),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.8]),
    top_k=st.sampled_from([0, 7]),
    top_p=st.sampled_from([1.0, 0.6]),
    prompt_logprobs=st.none() | st.integers(0, 2),
)


def test_engine_each_request_is_answered_as_if_it_were_alone(
    make_runner: Any, start: Start
) -> None:
    """In a device tier that is too small for all of them, and in chunks."""
    roomy, tight_runner = start(make_runner()), make_runner(device_blocks=12)

    @settings(deadline=None, max_examples=12)
    @given(
        wanted=st.lists(st.tuples(any_params, st.integers(1, 18)), min_size=1, max_size=5),
        max_batch_tokens=st.integers(1, 30),
    )
    def check(wanted: list[tuple[SamplingParams, int]], max_batch_tokens: int) -> None:
        tight = start(tight_runner, max_batch_tokens)
        alone = [run(roomy, request(params, PROMPT[:size]))[0] for params, size in wanted]
        together = run(tight, *(request(params, PROMPT[:size]) for params, size in wanted))
        tight.close()
        for ours, expected in zip(together, alone, strict=True):
            assert ours.tokens == expected.tokens
            assert same_logprobs(ours.logprobs, expected.logprobs)
            assert same_logprobs(ours.prompt_logprobs, expected.prompt_logprobs)

    check()


@pytest.mark.parametrize("max_batch_tokens", [1, 7, 64])
def test_engine_prompt_logprobs_are_those_of_the_whole_prompt(
    make_runner: Any, start: Start, max_batch_tokens: int
) -> None:
    """Also when the prompt is cached: it is computed again, and its blocks serve others."""
    runner = make_runner()
    chunk = ForwardChunk(PROMPT, 0, [BlockTable([0, 1, 2, 3, 4])], all_logits=True)
    expected = runner.forward([chunk]).log_softmax(-1)[:-1]
    engine = start(runner, max_batch_tokens)
    (plain,) = run(engine, request(SamplingParams(max_tokens=2, ignore_eos=True)))
    params = SamplingParams(max_tokens=2, ignore_eos=True, prompt_logprobs=3)
    (asking,) = run(engine, request(params))
    (after,) = run(engine, request(SamplingParams(max_tokens=2, ignore_eos=True)))
    assert plain.prompt_logprobs == []
    told = asking.prompt_logprobs
    own = expected.gather(-1, torch.tensor(PROMPT[1:])[:, None]).squeeze(-1)
    torch.testing.assert_close(torch.tensor([one.logprob for one in told]), own)
    assert [list(one.top_token_ids) for one in told] == expected.topk(3).indices.tolist()
    assert plain.tokens == asking.tokens == after.tokens
    assert (asking.hits, after.hits) == ({}, {TierKind.DEVICE: 16})


def test_engine_a_preempted_request_tells_its_prompt_once(make_runner: Any, start: Start) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True, prompt_logprobs=1)
    prompts = [[60 + i * 20 + j for j in range(12)] for i in range(4)]
    requests = [request(params, prompt) for prompt in prompts]
    answers = run(start(make_runner(device_blocks=14), 16), *requests)
    assert sum(one.num_preemptions for one in requests) > 0
    assert [len(answer.prompt_logprobs) for answer in answers] == [11] * 4


def test_engine_a_request_that_may_have_no_token_fails_alone(
    make_runner: Any, start: Start
) -> None:
    runner = make_runner()
    every = tuple((token,) for token in range(runner.vocab_size))
    engine = start(runner)
    bad, good = run(
        engine,
        request(SamplingParams(bad_words=every)),
        request(SamplingParams(max_tokens=4, ignore_eos=True), PROMPT[1:]),
    )
    assert isinstance(bad.outputs[-1].error, InvalidArgumentError)
    assert len(good.tokens) == 4


# Twins: samples of one prompt, and requests for the same one.


def test_engine_samples_of_one_prompt_compute_it_once(make_runner: Any, start: Start) -> None:
    params = [replace(EVERYTHING, seed=seed) for seed in range(5)]
    alone = [run(start(make_runner()), request(one))[0].tokens for one in params]
    model = Counted(make_runner())
    answers = run(start(model), *(request(one) for one in params))
    assert [answer.tokens for answer in answers] == alone
    assert sorted(answer.hits.get(TierKind.DEVICE, 0) for answer in answers) == [0] + [16] * 4
    # The prompt once, its last two tokens for each of the others, and 13 of each answer.
    assert model.num_tokens == 18 + 4 * 2 + 5 * 13


def test_engine_only_those_with_the_same_blocks_wait(make_runner: Any, start: Start) -> None:
    """18 and 19 tokens share all four full blocks; other prompts go on at once."""
    model = Counted(make_runner())
    params = SamplingParams(max_tokens=1)
    prompts = [PROMPT, [*PROMPT, 38], PROMPT[:10], PROMPT[:3]]
    model.go.clear()
    engine = start(model)
    answers = [Answer() for _ in prompts]
    engine.submit(request(params, [99]), answers[0])
    assert model.entered.wait(DEADLINE_S)  # so that the others are there together
    for prompt, answer in zip(prompts, answers, strict=True):
        engine.submit(request(params, prompt), answer)
    model.go.set()
    for answer in answers[1:]:
        answer.wait()
    assert model.sizes == [1, 18 + 10 + 3, 3]


@pytest.mark.parametrize("running", [True, False], ids=["running", "waiting"])
def test_engine_twins_of_a_cancelled_request_start_anew(
    make_runner: Any, start: Start, running: bool
) -> None:
    model = Counted(make_runner())
    engine = start(model)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    model.go.clear()
    requests = [request(params) for _ in range(4)]
    answers = [Answer() for _ in requests]
    if not running:
        engine.submit(request(params, [99]), Answer())
        assert model.entered.wait(DEADLINE_S)
    for one, answer in zip(requests, answers, strict=True):
        engine.submit(one, answer)
    assert model.entered.wait(DEADLINE_S)
    engine.cancel(requests[0].request_id)
    engine.cancel(requests[2].request_id)
    model.go.set()
    assert len({tuple(answers[i].wait().tokens) for i in (1, 3)}) == 1
    assert len(answers[1].tokens) == 3
    assert answers[2].wait().tokens == []
    (again,) = run(engine, request(params))
    assert again.tokens == answers[1].tokens
    load = engine.load()
    assert (load.running, load.waiting, load.free_blocks) == (0, 0, load.total_blocks)


def test_engine_twins_of_a_failed_request_start_anew(make_runner: Any, start: Start) -> None:
    class Failing(Counted):
        def forward(self, chunks: Sequence[ForwardChunk], *on_layer: Any) -> torch.Tensor:
            if not self.sizes:
                self.sizes.append(0)
                raise RuntimeError("the device fell off")
            return super().forward(chunks, *on_layer)

    params = SamplingParams(max_tokens=3, ignore_eos=True)
    answers = run(start(Failing(make_runner())), *(request(params) for _ in range(3)))
    assert [bool(answer.outputs[-1].error) for answer in answers] == [True, False, False]
    (again,) = run(start(make_runner()), request(params))
    assert answers[-1].tokens == again.tokens
