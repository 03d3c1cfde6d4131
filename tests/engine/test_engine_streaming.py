"""A hand-off while the prompt's blocks are still being published: two engines, one real node, and a
model that can be held up in the middle of a step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from decode_worker.scheduler import DecodeScheduler
from kvstore.client.sync import SyncClient
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockKeys, RequestId
from kvstore.node.config import NodeConfig
from kvstore.testing.node_process import NodeProcess, node_process
from kvstore.tiers.base import TierKind
from model_runner.attention import OnLayer
from model_runner.engine import Engine
from model_runner.engine_output import EngineOutput
from model_runner.inventory import RecordedInventory
from model_runner.runner import ModelRunner
from model_runner.step import ForwardChunk
from model_runner.store_node import NodeStore
from model_runner.types import FinishReason, Request, SamplingParams

DEADLINE_S = 30.0
_NUMBERS = iter(range(1, 200))


def new_prompt() -> list[int]:
    """Four blocks, and a token."""
    return [next(_NUMBERS), 7, 3, 9, 4, 11, 6, 8, 2, 15, 21, 13, 5, 19, 17, 23, 29]


class HeldUp:
    """A runner that stops after its first layer, until it may go on; or fails there."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.groups, self.caches = runner.groups, runner.caches
        self.eos_token_ids = runner.eos_token_ids
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.fails = False

    def forward(
        self, chunks: Sequence[ForwardChunk], on_layer: OnLayer | None = None
    ) -> torch.Tensor:
        def held_up(layer: int) -> None:
            if on_layer is not None:
                on_layer(layer)
            if layer == 0:
                self.entered.set()
                assert self.go.wait(DEADLINE_S)
                if self.fails:
                    raise RuntimeError("the device fell off")

        return self._runner.forward(chunks, held_up)


class Worker:
    def __init__(self, runner: ModelRunner, endpoint: str, deadline_s: float) -> None:
        self.model = HeldUp(runner)
        layouts = [group.layout for group in runner.groups]
        self.store = NodeStore(
            runner.groups,
            runner.caches,
            lambda: SyncClient.connect(endpoint, layouts=layouts, verify="always"),
            deadline_s=deadline_s,
            max_pending_blocks=64,
        )
        self.store.open()
        scheduler = DecodeScheduler(max_batch_tokens=64, max_running=8)
        sink = RecordedInventory(layouts[0].fingerprint)
        self.engine = Engine(self.model, scheduler, self.store, sink, max_live=64)

    def ask(self, prompt: Sequence[int], max_tokens: int = 6) -> Answer:
        answer = Answer()
        request = Request(
            RequestId(f"{id(self)}-{id(answer)}"),
            list(prompt),
            len(prompt),
            SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            identity_root=bytes(32),
        )
        answer.request_id = request.request_id
        self.engine.submit(request, answer.outputs.put)
        return answer

    def close(self) -> None:
        self.model.go.set()
        self.engine.close()
        self.store.close()


class Answer:
    request_id: RequestId

    def __init__(self) -> None:
        self.outputs: queue.SimpleQueue[EngineOutput] = queue.SimpleQueue()

    def wait(self) -> tuple[list[int], dict[TierKind, int]]:
        """Until all is published."""
        tokens: list[int] = []
        hits: dict[TierKind, int] = {}
        while True:
            output = self.outputs.get(timeout=DEADLINE_S)
            if output.error is not None:
                raise output.error
            tokens += output.token_ids
            hits = dict(output.first.hit_tokens) if output.first else hits
            if output.published:
                return tokens, hits


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    folder: Path = tmp_path_factory.mktemp("arenas")
    with node_process(NodeConfig(host=16 << 20, arena_folder=str(folder))) as process:
        yield process


@pytest.fixture
def start(
    node: NodeProcess, make_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Worker]]:
    # The blocks of this model are so small that all layers would go in one copy.
    monkeypatch.setattr("model_runner.store_publishing.BATCH_BYTES", 1)
    with ExitStack() as stack:

        def start(deadline_s: float = 20.0) -> Worker:
            worker = Worker(make_runner(), node.zmq_endpoint, deadline_s)
            stack.callback(worker.close)
            return worker

        yield start


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def layers_ready(node: NodeProcess, worker: Worker, prompt: Sequence[int]) -> int:
    """Of the prompt's blocks, which must all be pending to count."""
    (layout,) = (group.layout for group in worker.model.groups)
    keys = BlockKeys(layout.fingerprint, block_hashes(bytes(32), prompt, 4))
    with (
        SyncClient.connect(node.zmq_endpoint, layouts=[layout]) as client,
        client.acquire(keys, streaming=True) as lease,
    ):
        if len(lease.found) < len(keys) or not all(block.pending for block in lease.found):
            return 0
        return min(lease.layers_ready(block) for block in lease.found)


def held_up(node: NodeProcess, prefill: Worker, prompt: Sequence[int]) -> Answer:
    """A prompt whose first layer is in the store, and no other."""
    prefill.model.go.clear()
    answer = prefill.ask(prompt)
    until(lambda: layers_ready(node, prefill, prompt) == 1, "the first layer was not published")
    return answer


def test_a_decode_worker_loads_what_is_still_being_computed(
    node: NodeProcess, start: Any, reference: Any
) -> None:
    prompt, prefill, decode = new_prompt(), start(), start()
    (cache,) = decode.model.caches
    cache.tensor.zero_()
    first = held_up(node, prefill, prompt)
    second = decode.ask(prompt)
    until(lambda: bool(cache.layer(0).any()), "the first layer was not loaded")
    assert not cache.tensor[:, 1:].any()
    assert not decode.model.entered.is_set()
    prefill.model.go.set()
    expected = reference(prompt, 6)
    assert first.wait() == (expected, {})
    assert second.wait() == (expected, {TierKind.HOST: 16})


def test_a_prefill_that_fails_in_the_middle_costs_a_recompute(
    node: NodeProcess, start: Any, reference: Any
) -> None:
    prompt, prefill, decode = new_prompt(), start(), start()
    first = held_up(node, prefill, prompt)
    second = decode.ask(prompt)
    prefill.model.fails = True
    prefill.model.go.set()
    with pytest.raises(Exception, match="the device fell off"):
        first.wait()
    assert second.wait() == (reference(prompt, 6), {})
    prefill.model.fails = False
    until(lambda: prefill.engine.load().free_blocks == 64, "blocks are still held")


def test_a_prefill_that_is_too_slow_is_not_waited_for(
    node: NodeProcess, start: Any, reference: Any
) -> None:
    prompt, prefill, decode = new_prompt(), start(), start(deadline_s=0.3)
    first = held_up(node, prefill, prompt)
    expected = reference(prompt, 6)
    second = decode.ask(prompt)
    until(decode.model.entered.is_set, "the decode worker waits for ever")
    prefill.model.go.set()
    assert second.wait() == (expected, {})
    assert first.wait() == (expected, {})


def test_a_request_cancelled_in_the_middle_of_a_step_gives_its_blocks_back(
    node: NodeProcess, start: Any, reference: Any
) -> None:
    """Once they are in the store, where the next one finds them."""
    prompt, prefill, decode = new_prompt(), start(), start()
    first = held_up(node, prefill, prompt)
    prefill.engine.cancel(first.request_id)
    prefill.model.go.set()
    until(lambda: prefill.store.statistics().published_blocks == 4, "nothing was published")
    prefill.ask([250, 251], 1).wait()
    until(lambda: prefill.engine.load().free_blocks == 64, "blocks are still held")
    outputs = []
    while not outputs or outputs[-1].finish_reason is None:
        outputs.append(first.outputs.get(timeout=DEADLINE_S))
    assert outputs[-1].finish_reason is FinishReason.CANCELLED
    assert decode.ask(prompt).wait() == (reference(prompt, 6), {TierKind.HOST: 16})
