"""The choice between loading and computing, made by an engine with a real node behind a link whose
delay the test sets."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from decode_worker.scheduler import DecodeScheduler
from kvstore.client.blocks import FoundBlock, PrefixMatch
from kvstore.client.deadline import Deadline
from kvstore.client.sync import SyncClient, SyncLease
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockKeys, RequestId
from kvstore.node.config import NodeConfig
from kvstore.testing.node_process import node_process
from kvstore.tiers.base import MissReason, TierKind
from model_runner.engine import Engine
from model_runner.engine_output import EngineOutput
from model_runner.inventory import RecordedInventory
from model_runner.load_or_compute import LoadPlanner
from model_runner.runner import ModelRunner
from model_runner.store import Wanted
from model_runner.store_loading import BlockLoader
from model_runner.store_node import NodeStore
from model_runner.types import Request, SamplingParams

DEADLINE_S = 30.0
SLOW_S = 0.5
HIT = {TierKind.HOST: 16}


class Worker:
    """An engine whose loads take `delay_s` longer, and whose clock the test may advance."""

    def __init__(self, runner: ModelRunner, endpoint: str) -> None:
        self.delay_s = self.advanced_s = 0.0
        self.planner = LoadPlanner(max_step_tokens=64)
        self.store = NodeStore(
            runner.groups,
            runner.caches,
            lambda: self._slow(endpoint, [group.layout for group in runner.groups]),
            deadline_s=DEADLINE_S,
            max_pending_blocks=64,
            planner=self.planner,
            clock=lambda: time.monotonic() + self.advanced_s,
        )
        self.store.open()
        self.engine = Engine(
            runner,
            DecodeScheduler(max_batch_tokens=64, max_running=8),
            self.store,
            RecordedInventory(runner.groups[0].layout.fingerprint),
            max_live=64,
            planner=self.planner,
        )

    def _slow(self, endpoint: str, layouts: Sequence[Any]) -> SyncClient:
        client = SyncClient.connect(
            endpoint, client_name="test", layouts=layouts, deadline_s=DEADLINE_S
        )
        acquire = client.acquire

        def slow(*args: Any, **kwargs: Any) -> SyncLease:
            time.sleep(self.delay_s)
            return acquire(*args, **kwargs)

        client.acquire = slow  # type: ignore[method-assign]
        return client

    def ask(
        self, prompt: Sequence[int], max_tokens: int = 3
    ) -> tuple[list[int], dict[TierKind, int]]:
        outputs: queue.SimpleQueue[EngineOutput] = queue.SimpleQueue()
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        name = RequestId(str(prompt[0]))
        request = Request(name, list(prompt), len(prompt), sampling, identity_root=bytes(32))
        self.engine.submit(request, outputs.put)
        tokens: list[int] = []
        hits: dict[TierKind, int] = {}
        while True:
            output = outputs.get(timeout=DEADLINE_S)
            assert output.error is None
            tokens += output.token_ids
            hits = dict(output.first.hit_tokens) if output.first else hits
            if output.published:
                return tokens, hits

    def close(self) -> None:
        self.engine.close()
        self.store.close()


@pytest.fixture
def start_worker(make_runner: Any, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    with ExitStack() as stack:
        config = NodeConfig.model_validate({"host": "4MiB", "arena_folder": str(tmp_path)})
        endpoint = stack.enter_context(node_process(config)).zmq_endpoint

        def start(**settings: int) -> Worker:
            worker = Worker(make_runner(**settings), endpoint)
            stack.callback(worker.close)
            return worker

        yield start


def prompts(count: int) -> list[list[int]]:
    return [[20 + number, *range(100, 117)] for number in range(count)]


def test_a_slow_store_is_left_alone_and_found_again_when_it_is_fast(
    start_worker: Callable[..., Worker], reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "model_runner.load_or_compute")
    writer, reader = start_worker(), start_worker()
    asked = iter(prompts(20))
    known = [next(asked) for _ in range(16)]
    answers = {prompt[0]: writer.ask(prompt)[0] for prompt in known}
    unused = iter(known)

    def hits() -> dict[TierKind, int]:
        prompt = next(unused)
        tokens, found = reader.ask(prompt)
        assert tokens == answers[prompt[0]]
        return found

    assert hits() == HIT
    reader.delay_s = SLOW_S
    seen = [hits() for _ in range(4)]
    assert seen[0] == HIT, "one slow load proves nothing"
    assert seen[-1] == {}, "it is faster to compute"
    computed = seen.count({})
    assert reader.planner.statistics(0.0).recomputed_blocks == {TierKind.HOST: 4 * computed}
    assert "loading 0 of 4 blocks" in caplog.text

    reader.delay_s = 0.0
    assert hits() == {}, "nobody knows yet that it is fast"
    reader.advanced_s = 120.0
    assert [hits() for _ in range(3)] == [HIT] * 3
    assert answers[known[0][0]] == reference(known[0], 3)


class Late:
    """A lease on blocks that are there, and do not come in time."""

    found: Sequence[FoundBlock] = ()
    prefix_length = 0

    def __init__(self, keys: BlockKeys) -> None:
        self.misses = dict.fromkeys(range(len(keys)), MissReason.LATE)

    def __enter__(self) -> Late:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class LateClient:
    """Of a node whose disk hangs."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_acquired = 0

    def match(self, keys: BlockKeys, **_: Any) -> PrefixMatch:
        return PrefixMatch([TierKind.DISK] * len(keys))

    def acquire(self, keys: BlockKeys, **_: Any) -> Late:
        self.num_acquired += 1
        self.now_s += 2.0
        return Late(keys)


def test_blocks_that_never_come_in_time_are_not_waited_for_any_more(make_runner: Any) -> None:
    """A load of nothing teaches, too: else each request would wait for the whole deadline."""
    runner, client, planner = make_runner(), LateClient(), LoadPlanner(max_step_tokens=64)
    loader = BlockLoader(runner.groups, runner.caches, planner, lambda: client.now_s)
    hashes = block_hashes(bytes(32), range(16), 4)
    wanted = Wanted(hashes, [range(4)], first_block=0, num_tokens=18)
    for _ in range(5):
        tiers = loader.load(client, wanted, Deadline(DEADLINE_S))  # type: ignore[arg-type]
        assert not tiers
    assert client.num_acquired <= 3
    assert planner.statistics(client.now_s).recomputed_blocks[TierKind.DISK] >= 8


def test_a_preempted_request_computes_what_would_come_too_late(
    start_worker: Callable[..., Worker], reference: Any
) -> None:
    worker = start_worker(device_blocks=14)
    for _ in range(3):
        worker.planner.observe_load({TierKind.HOST: 1 << 20}, 60.0, time.monotonic())
    crowd = [[60 + i * 20 + j for j in range(12)] for i in range(4)]
    with ThreadPoolExecutor(len(crowd)) as pool:
        answers = list(pool.map(lambda prompt: worker.ask(prompt, 20)[0], crowd))
    assert answers == [reference(prompt, 20) for prompt in crowd]
    counted = worker.engine.statistics()
    assert counted.preemptions > 0
    assert counted.loaded_back_blocks == 0
    assert worker.planner.statistics(0.0).recomputed_blocks[TierKind.HOST] > 0
