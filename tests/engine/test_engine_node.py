"""The engine with a real node: host hits, disk hits, hand-off, and a store that fails."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from decode_worker.scheduler import DecodeScheduler
from kvstore.client.sync import SyncClient
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockKeys, RequestId
from kvstore.node.config import NodeConfig
from kvstore.tiers.base import TierKind
from model_runner.engine import Engine
from model_runner.engine_output import EngineOutput
from model_runner.inventory import RecordedInventory
from model_runner.runner import ModelRunner
from model_runner.store_node import NodeStore
from model_runner.types import FinishReason, Request, SamplingParams

DEADLINE_S = 30.0
PROMPT = [7, 3, 9, 4, 11, 6, 8, 2, 15, 21, 13, 5, 19, 17, 23, 29, 31, 37]

_NODE_MAIN = """
import asyncio, sys
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import serve

config = NodeConfig.model_validate_json(sys.argv[1])
asyncio.run(serve(config, lambda node: print(node.zmq_endpoint, flush=True)))
"""


class NodeProcess:
    """A node of its own process, so that it can be killed."""

    def __init__(self, **settings: Any) -> None:
        config = NodeConfig.model_validate({"host": "4MiB"} | settings)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _NODE_MAIN, config.model_dump_json()],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().strip()
        assert self.endpoint

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE_S)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Worker:
    """An engine with its store connector."""

    def __init__(self, runner: ModelRunner, endpoint: str, deadline_s: float = 5.0) -> None:
        self.runner = runner
        layouts = [group.layout for group in runner.groups]
        self.store = NodeStore(
            runner.groups,
            runner.caches,
            lambda: SyncClient.connect(
                endpoint, client_name="test", layouts=layouts, deadline_s=deadline_s
            ),
            deadline_s=deadline_s,
            max_pending_blocks=64,
        )
        self.store.open()
        self.engine = Engine(
            runner,
            DecodeScheduler(max_batch_tokens=64, max_running=8),
            self.store,
            RecordedInventory(runner.layout.fingerprint),
            max_live=64,
        )
        self._numbers = iter(range(1_000_000))

    def ask(
        self, prompt: Sequence[int], max_tokens: int = 6, **fields: Any
    ) -> tuple[list[int], dict[TierKind, int]]:
        outputs: queue.SimpleQueue[EngineOutput] = queue.SimpleQueue()
        request = Request(
            RequestId(str(next(self._numbers))),
            list(prompt),
            fields.pop("num_prompt_tokens", len(prompt)),
            SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            identity_root=bytes(32),
            **fields,
        )
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
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start_node(stack: ExitStack, tmp_path: Path) -> Callable[..., NodeProcess]:
    def start(**settings: Any) -> NodeProcess:
        node = NodeProcess(arena_folder=str(tmp_path), **settings)
        stack.callback(node.stop)
        return node

    return start


@pytest.fixture
def start_worker(stack: ExitStack, make_runner: Any) -> Callable[..., Worker]:
    def start(endpoint: str, deadline_s: float = 5.0, **settings: Any) -> Worker:
        worker = Worker(make_runner(**settings), endpoint, deadline_s)
        stack.callback(worker.close)
        return worker

    return start


def test_node_another_worker_hits_what_one_computed(
    start_node: Any, start_worker: Any, reference: Any
) -> None:
    node = start_node()
    first, second = start_worker(node.endpoint), start_worker(node.endpoint)
    expected = reference(PROMPT, 6)
    assert first.ask(PROMPT) == (expected, {})
    assert second.ask(PROMPT) == (expected, {TierKind.HOST: 16})
    assert second.ask(PROMPT) == (expected, {TierKind.DEVICE: 16})


def test_node_hand_off_from_prefill_to_decode(
    start_node: Any, start_worker: Any, reference: Any
) -> None:
    node = start_node()
    prefill, decode = start_worker(node.endpoint), start_worker(node.endpoint)
    prompt = PROMPT[:16]
    first, _ = prefill.ask(prompt, max_tokens=1)
    rest, hits = decode.ask([*prompt, *first], max_tokens=8, num_prompt_tokens=len(prompt))
    assert first + rest == reference(prompt, 8)
    assert hits == {TierKind.HOST: 16}


def test_node_evicted_from_the_device_comes_back_from_host_and_disk(
    start_node: Any, start_worker: Any, reference: Any, tmp_path: Path
) -> None:
    node = start_node(host="1MiB", disk="64MiB", disk_path=str(tmp_path / "disk"))
    worker = start_worker(node.endpoint, device_blocks=24)
    prompts = [[10 + (i * 37 + j * 11) % 200 for j in range(60)] for i in range(24)]
    answers = [worker.ask(prompt)[0] for prompt in prompts]
    tiers: set[TierKind] = set()
    for prompt, expected in zip(reversed(prompts), reversed(answers), strict=True):
        tokens, hits = worker.ask(prompt)
        assert tokens == expected
        tiers |= hits.keys()
    assert {TierKind.HOST, TierKind.DISK} <= tiers
    assert answers[0] == reference(prompts[0], 6)


def test_node_killed_in_between_costs_a_recompute(
    start_node: Any, start_worker: Any, reference: Any
) -> None:
    node = start_node()
    first, second = start_worker(node.endpoint), start_worker(node.endpoint, deadline_s=0.3)
    first.ask(PROMPT)
    node.kill()
    expected = reference(PROMPT, 6)
    assert second.ask(PROMPT) == (expected, {})
    other = [x + 100 for x in PROMPT]
    assert second.ask(other) == (reference(other, 6), {})
    assert second.store.statistics().errors


@pytest.mark.parametrize("device_blocks", [64, 20])
def test_node_killed_while_requests_run_fails_none(
    start_node: Any, start_worker: Any, reference: Any, device_blocks: int
) -> None:
    """Nor those that are preempted, where there is little room."""
    node = start_node()
    worker = start_worker(node.endpoint, deadline_s=0.3, device_blocks=device_blocks)
    prompts = [[x + 16 * i for x in PROMPT] for i in range(12)]
    answers: dict[int, tuple[list[int], dict[TierKind, int]]] = {}

    def ask(number: int) -> None:
        answers[number] = worker.ask(prompts[number], 20)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
    for number, thread in enumerate(threads):
        thread.start()
        if number == 6:
            node.kill()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [answers[n][0] for n in range(len(prompts))] == [reference(p, 20) for p in prompts]
    assert device_blocks == 64 or worker.engine.statistics().preemptions > 0


def test_node_that_comes_back_is_used_again(
    start_node: Any, start_worker: Any, reference: Any
) -> None:
    node = start_node()
    worker = start_worker(node.endpoint, deadline_s=0.3)
    worker.ask(PROMPT)
    node.kill()
    worker.ask([x + 50 for x in PROMPT])
    again = start_node(zmq_endpoint=node.endpoint)
    other = start_worker(again.endpoint)
    for number in range(200):
        prompt = [60 + number % 150, *PROMPT[1:]]
        tokens, _ = worker.ask(prompt)
        threading.Event().wait(0.05)
        if worker.store.statistics().published_blocks > 8:
            break
    assert other.ask(prompt) == (tokens, {TierKind.HOST: 16})


def test_node_absent_at_the_start_delays_nothing(start_worker: Any, reference: Any) -> None:
    worker = start_worker("ipc:///nonexistent/socket", deadline_s=0.2)
    assert worker.ask(PROMPT) == (reference(PROMPT, 6), {})


def test_node_bypass_never_touches_the_store(
    start_node: Any, start_worker: Any, reference: Any
) -> None:
    node = start_node()
    first, second = start_worker(node.endpoint), start_worker(node.endpoint)
    first.ask(PROMPT, bypass_cache=True)
    assert first.store.statistics().published_blocks == 0
    assert second.ask(PROMPT)[1] == {}
    assert first.ask(PROMPT, bypass_cache=True) == (reference(PROMPT, 6), {})


def test_node_preempted_requests_load_again(
    start_node: Any, start_worker: Any, reference: Any
) -> None:
    node = start_node()
    worker = start_worker(node.endpoint, device_blocks=14)
    prompts = [[60 + i * 20 + j for j in range(12)] for i in range(4)]
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        answers[number] = worker.ask(prompts[number], 20)[0]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [answers[n] for n in range(4)] == [reference(prompt, 20) for prompt in prompts]
    counted = worker.engine.statistics()
    assert counted.preemptions > 0
    assert counted.demoted_blocks > 0


def test_node_cancelled_while_loading_frees_its_blocks(start_node: Any, start_worker: Any) -> None:
    node = start_node()
    worker = start_worker(node.endpoint, deadline_s=1.0)
    node.process.send_signal(signal.SIGSTOP)
    try:
        outputs: queue.SimpleQueue[EngineOutput] = queue.SimpleQueue()
        request = Request(
            RequestId("loading"), PROMPT, len(PROMPT), SamplingParams(), identity_root=bytes(32)
        )
        worker.engine.submit(request, outputs.put)
        worker.engine.cancel(request.request_id)
        assert outputs.get(timeout=DEADLINE_S).finish_reason is FinishReason.CANCELLED
    finally:
        node.process.send_signal(signal.SIGCONT)
    worker.ask([90, 91], 1)
    for _ in range(1_000):
        if worker.engine.load().free_blocks == 64:
            return
        threading.Event().wait(0.01)
    raise AssertionError("blocks are still held")


def test_node_a_block_with_wrong_bytes_is_not_used(
    start_node: Any, start_worker: Any, reference: Any
) -> None:
    """Whatever overwrote the arena: the checksum ends the usable prefix; the rest is computed."""
    node = start_node()
    first, second = start_worker(node.endpoint), start_worker(node.endpoint)
    expected = reference(PROMPT, 6)
    first.ask(PROMPT)
    client = first.store._session.client()
    assert client is not None
    (layout,) = (group.layout for group in second.runner.groups)
    keys = BlockKeys(layout.fingerprint, block_hashes(bytes(32), PROMPT, 4))
    with client.acquire(keys) as lease:
        offset = lease._inner._offsets[2]
        session = client._inner._connection._session
        assert session is not None
        session.arena.view(offset, 16)[:] = b"\xff" * 16
    assert second.ask(PROMPT) == (expected, {TierKind.HOST: 8})
