"""The engine with a real model and no store: tokens, hits, preemption, bounds, failures."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from decode_worker.scheduler import DecodeScheduler
from kvstore.core.errors import (
    InvalidArgumentError,
    KVStoreError,
    ResourceExhaustedError,
    UnavailableError,
)
from kvstore.core.ids import BlockKeys, RequestId
from kvstore.tiers.base import TierKind
from model_runner.engine import Engine
from model_runner.engine_output import EngineOutput
from model_runner.inventory import RecordedInventory
from model_runner.runner import ModelRunner
from model_runner.step import ForwardChunk
from model_runner.store import NullStore
from model_runner.types import FinishReason, Request, SamplingParams

DEADLINE_S = 30.0
PROMPT = [7, 3, 9, 4, 11, 6, 8, 2, 15, 21, 13, 5, 19, 17, 23, 29, 31, 37]


@dataclass
class Answer:
    """Collects what the engine emits."""

    outputs: list[EngineOutput] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    arrivals: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    def __call__(self, output: EngineOutput) -> None:
        self.outputs.append(output)
        self.tokens += output.token_ids
        for token in output.token_ids:
            self.arrivals.put(token)
        if output.finish_reason or output.error:
            self.finished.set()
        if output.published or output.error or output.finish_reason is FinishReason.CANCELLED:
            self.over.set()

    def wait(self) -> list[int]:
        assert self.over.wait(DEADLINE_S)
        return self.tokens

    @property
    def hits(self) -> dict[TierKind, int]:
        return next(dict(o.first.hit_tokens) for o in self.outputs if o.first)

    @property
    def error(self) -> KVStoreError | None:
        return self.outputs[-1].error


def request(
    prompt: Sequence[int], max_tokens: int = 8, *, name: str = "", **fields: Any
) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Request(
        RequestId(name or f"{id(prompt)}-{next(_NUMBERS)}"),
        list(prompt),
        fields.pop("num_prompt_tokens", len(prompt)),
        fields.pop("sampling", sampling),
        identity_root=bytes(32),
        **fields,
    )


_NUMBERS = iter(range(1_000_000))

Start = Callable[..., Engine]


@pytest.fixture
def start() -> Iterator[Start]:
    engines = []

    def start(model: Any, *, sink: Any = None, store: Any = None, **limits: int) -> Engine:
        scheduler = DecodeScheduler(
            max_batch_tokens=limits.get("max_batch_tokens", 64),
            max_running=limits.get("max_running", 8),
        )
        engines.append(
            Engine(
                model,
                scheduler,
                store or NullStore(),
                sink or RecordedInventory(model.groups[0].layout.fingerprint),
                max_live=limits.get("max_live", 64),
            )
        )
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def run(engine: Engine, *requests: Request) -> list[Answer]:
    answers = [Answer() for _ in requests]
    for one, answer in zip(requests, answers, strict=True):
        engine.submit(one, answer)
    for answer in answers:
        answer.wait()
    return answers


class Wrapped:
    """A runner whose forward a test can hold up or break."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.groups, self.caches = runner.groups, runner.caches
        self.eos_token_ids = runner.eos_token_ids
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None
        self.steps = 0

    def forward(self, chunks: Sequence[ForwardChunk], *on_layer: Any) -> torch.Tensor:
        self.steps += 1
        self.entered.set()
        assert self.go.wait(DEADLINE_S)
        failure, self.failure = self.failure, None
        if failure:
            raise failure
        return self._runner.forward(chunks, *on_layer)


def test_engine_cold_and_device_hit_equal_generate(
    make_runner: Any, reference: Any, start: Start
) -> None:
    engine = start(make_runner())
    expected = reference(PROMPT, 8)
    (cold,) = run(engine, request(PROMPT))
    (warm,) = run(engine, request(PROMPT))
    assert cold.tokens == warm.tokens == expected
    assert cold.hits == {}
    assert warm.hits == {TierKind.DEVICE: 16}


def test_engine_a_full_hit_still_computes_the_last_token(
    make_runner: Any, reference: Any, start: Start
) -> None:
    engine = start(make_runner())
    prompt = PROMPT[:16]
    run(engine, request(prompt))
    (warm,) = run(engine, request(prompt))
    assert warm.tokens == reference(prompt, 8)
    assert warm.hits == {TierKind.DEVICE: 12}


def test_engine_the_next_turn_hits_generated_blocks(
    make_runner: Any, reference: Any, start: Start
) -> None:
    engine = start(make_runner())
    (first,) = run(engine, request(PROMPT, 10))
    turn = [*PROMPT, *first.tokens, 40, 41, 42]
    (second,) = run(engine, request(turn))
    assert second.tokens == reference(turn, 8)
    assert second.hits == {TierKind.DEVICE: 24}  # 18 + 9 computed tokens: 6 full blocks


def test_engine_mixed_lengths_in_small_chunks(
    make_runner: Any, reference: Any, start: Start
) -> None:
    engine = start(make_runner(), max_batch_tokens=7)
    prompts = [PROMPT[:n] for n in (1, 4, 5, 13, 18)] + [[50 + i for i in range(40)]]
    answers = run(engine, *(request(prompt, 6) for prompt in prompts))
    assert [a.tokens for a in answers] == [reference(prompt, 6) for prompt in prompts]


def test_engine_preempted_requests_go_on_with_the_same_tokens(
    make_runner: Any, reference: Any, start: Start
) -> None:
    engine = start(make_runner(device_blocks=14))
    prompts = [[60 + i * 20 + j for j in range(12)] for i in range(4)]
    requests = [request(prompt, 20) for prompt in prompts]
    answers = run(engine, *requests)
    assert sum(r.num_preemptions for r in requests) > 0
    assert [a.tokens for a in answers] == [reference(prompt, 20) for prompt in prompts]
    assert engine.load().free_blocks == 14


def test_engine_goes_on_after_output_tokens_of_another_worker(
    make_runner: Any, reference: Any, start: Start
) -> None:
    engine = start(make_runner())
    expected = reference(PROMPT, 8)
    handed = request([*PROMPT, *expected[:3]], num_prompt_tokens=len(PROMPT))
    (answer,) = run(engine, handed)
    assert answer.tokens == expected[3:]


def test_engine_seeded_sampling_depends_on_no_neighbour(make_runner: Any, start: Start) -> None:
    engine = start(make_runner())
    sampling = SamplingParams(temperature=1.0, seed=5, max_tokens=12, ignore_eos=True)
    (alone,) = run(engine, request(PROMPT, sampling=sampling, bypass_cache=True))
    crowd = [request(PROMPT[:n], 12) for n in (3, 7)]
    (together, *_) = run(engine, request(PROMPT, sampling=sampling, bypass_cache=True), *crowd)
    assert together.tokens == alone.tokens


def test_engine_bypass_neither_reads_nor_writes_the_cache(
    make_runner: Any, reference: Any, start: Start
) -> None:
    inventory = RecordedInventory(make_runner().layout.fingerprint)
    engine = start(make_runner(), sink=inventory)
    (bypassing,) = run(engine, request(PROMPT, bypass_cache=True))
    assert not any(len(keys) for _, keys in inventory())
    run(engine, request(PROMPT))
    (again,) = run(engine, request(PROMPT, bypass_cache=True))
    assert bypassing.tokens == again.tokens == reference(PROMPT, 8)
    assert again.hits == {}


def test_engine_tenants_with_other_roots_share_nothing(make_runner: Any, start: Start) -> None:
    engine = start(make_runner())
    run(engine, request(PROMPT))
    other = request(PROMPT)
    other.identity_root = b"x" * 32
    (answer,) = run(engine, other)
    assert answer.hits == {}


def test_engine_stop_tokens_and_eos(make_runner: Any, reference: Any, start: Start) -> None:
    expected = reference(PROMPT, 8)
    model = Wrapped(make_runner())
    model.eos_token_ids = frozenset({expected[4]})
    engine = start(model)
    stop = SamplingParams(max_tokens=8, ignore_eos=True, stop_token_ids=frozenset({expected[2]}))
    eos = SamplingParams(max_tokens=8)
    answers = run(engine, request(PROMPT, sampling=stop), request(PROMPT, sampling=eos))
    for answer, last in zip(answers, (2, 4), strict=True):
        assert answer.tokens == expected[: expected.index(expected[last]) + 1]
        assert answer.outputs[-2].finish_reason is FinishReason.STOP
    (ignoring,) = run(engine, request(PROMPT))
    assert ignoring.tokens == expected
    assert ignoring.outputs[-2].finish_reason is FinishReason.LENGTH


def test_engine_outputs_come_in_order(make_runner: Any, start: Start) -> None:
    engine = start(make_runner())
    (answer,) = run(engine, request(PROMPT, 3))
    assert [bool(o.first) for o in answer.outputs] == [True, False, False, False]
    assert [o.finish_reason for o in answer.outputs] == [None, None, FinishReason.LENGTH, None]
    assert [o.published for o in answer.outputs] == [False, False, False, True]
    first = answer.outputs[0].first
    assert first is not None
    assert first.queue_s >= 0
    assert first.compute_s > 0


def test_engine_cancelling_frees_blocks(make_runner: Any, start: Start) -> None:
    engine = start(make_runner())
    answer = Answer()
    engine.submit(request(PROMPT, 200, name="long"), answer)
    answer.arrivals.get(timeout=DEADLINE_S)
    engine.cancel(RequestId("long"))
    engine.cancel(RequestId("never there"))
    answer.wait()
    assert len(answer.tokens) < 200
    run(engine, request(PROMPT, 1))
    load = engine.load()
    assert (load.running, load.waiting, load.waiting_tokens) == (0, 0, 0)
    assert load.free_blocks == load.total_blocks == 64


def test_engine_cancelling_a_waiting_request(make_runner: Any, start: Start) -> None:
    model = Wrapped(make_runner())
    engine = start(model, max_running=1)
    model.go.clear()
    running, waiting = Answer(), Answer()
    engine.submit(request(PROMPT, 2), running)
    assert model.entered.wait(DEADLINE_S)
    engine.submit(request(PROMPT, 2, name="waiting"), waiting)
    engine.cancel(RequestId("waiting"))
    model.go.set()
    assert len(running.wait()) == 2
    assert waiting.wait() == []


def test_engine_refuses_more_than_it_may_hold(make_runner: Any, start: Start) -> None:
    model = Wrapped(make_runner())
    engine = start(model, max_live=2)
    model.go.clear()
    answers = [Answer(), Answer()]
    for answer in answers:
        engine.submit(request(PROMPT, 2), answer)
    with pytest.raises(ResourceExhaustedError, match="2 requests run or wait"):
        engine.submit(request(PROMPT, 2), Answer())
    model.go.set()
    assert all(answer.wait() for answer in answers)
    run(engine, request(PROMPT, 2))


def test_engine_refuses_what_the_device_tier_cannot_hold(make_runner: Any, start: Start) -> None:
    engine = start(make_runner(device_blocks=4))
    with pytest.raises(InvalidArgumentError, match=r"18 tokens and max_tokens=8 .* 16 tokens"):
        engine.submit(request(PROMPT, 8), Answer())


def test_engine_a_failing_step_ends_its_requests_and_no_others(
    make_runner: Any, reference: Any, start: Start
) -> None:
    model = Wrapped(make_runner())
    engine = start(model)
    model.failure = RuntimeError("the device fell off")
    (failed,) = run(engine, request(PROMPT))
    assert isinstance(failed.error, KVStoreError)
    assert "the device fell off" in str(failed.error)
    (answer,) = run(engine, request(PROMPT))
    assert answer.tokens == reference(PROMPT, 8)
    assert answer.hits == {}
    assert engine.load().free_blocks == 64


def test_engine_unusable_logits_end_only_their_row(
    make_runner: Any, reference: Any, start: Start
) -> None:
    class Sick(Wrapped):
        def forward(self, chunks: Sequence[ForwardChunk], *on_layer: Any) -> torch.Tensor:
            logits = super().forward(chunks, *on_layer).clone()
            sick = [i for i, chunk in enumerate(chunks) if chunk.token_ids[0] == 1]
            logits[sick] = float("nan")
            return logits

    engine = start(Sick(make_runner()))
    bad, good = run(engine, request([1, 2, 3]), request(PROMPT))
    assert "not finite" in str(bad.error)
    assert good.tokens == reference(PROMPT, 8)


def test_engine_close_ends_what_is_left(make_runner: Any, start: Start) -> None:
    engine = start(make_runner())
    answer = Answer()
    engine.submit(request(PROMPT, 200), answer)
    answer.arrivals.get(timeout=DEADLINE_S)
    engine.close()
    answer.wait()
    assert isinstance(answer.error, UnavailableError)
    assert not engine.alive
    with pytest.raises(UnavailableError):
        engine.submit(request(PROMPT), Answer())


def test_engine_a_defect_in_bookkeeping_ends_everything(make_runner: Any) -> None:
    class Broken(DecodeScheduler):
        def schedule(self, blocks: Any) -> Any:
            if self.num_waiting:
                raise AssertionError("broken")
            return super().schedule(blocks)

    runner = make_runner()
    engine = Engine(
        runner,
        Broken(max_batch_tokens=8, max_running=8),
        NullStore(),
        RecordedInventory(runner.layout.fingerprint),
        max_live=8,
    )
    answer = Answer()
    engine.submit(request(PROMPT), answer)
    answer.wait()
    assert isinstance(answer.error, UnavailableError)
    engine.close()


def test_engine_tells_what_it_holds(make_runner: Any, start: Start) -> None:
    heard: dict[bytes, None] = {}

    class Audience:
        def stored(self, tier: TierKind, keys: BlockKeys) -> None:
            assert tier is TierKind.DEVICE
            heard.update(dict.fromkeys(keys.hashes))

        def removed(self, tier: TierKind, keys: BlockKeys) -> None:
            for block_hash in keys.hashes:
                del heard[block_hash]

        def cleared(self, tier: TierKind) -> None:
            raise AssertionError

    runner = make_runner(device_blocks=12)
    inventory = RecordedInventory(runner.layout.fingerprint)
    inventory.audience = Audience()
    engine = start(runner, sink=inventory)
    for i in range(5):
        run(engine, request([100 + 20 * i + j for j in range(18)]))
    engine.close()
    ((tier, keys),) = inventory()
    assert tier is TierKind.DEVICE
    assert list(keys.hashes) == list(heard)
    assert 1 <= len(keys) <= 12


def test_engine_sleeps_when_idle(make_runner: Any, start: Start) -> None:
    model = Wrapped(make_runner())
    engine = start(model)
    run(engine, request(PROMPT, 2))
    steps = model.steps
    threading.Event().wait(0.2)
    assert model.steps == steps
