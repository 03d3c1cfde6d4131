"""Blocks that go through a real node layer by layer: published, and loaded by another worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from kvstore.client.sync import SyncClient
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.layout import KVLayout
from kvstore.node.config import NodeConfig
from kvstore.testing.node_process import NodeProcess, node_process
from kvstore.tiers.base import MissReason, TierKind
from kvstore.tiers.device.cache import DeviceCache
from model_runner.kv_groups import KVGroup
from model_runner.store import BlockRun, Wanted
from model_runner.store_node import NodeStore

DEADLINE_S = 30.0
LAYOUT = KVLayout(4, 8, 128, 16, "float32")
GROUP = KVGroup(LAYOUT, (0, 1, 2, 3))
NUM_BLOCKS = 32
"""As much in each layer as is copied at a time."""
_NAMES = iter(range(1 << 20))


def new_hashes(count: int = NUM_BLOCKS) -> list[BlockHash]:
    return [BlockHash(next(_NAMES).to_bytes(32, "big")) for _ in range(count)]


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


class Worker:
    """A device cache without a model, and its store connector."""

    def __init__(self, endpoint: str, deadline_s: float = 20.0, max_pending_blocks: int = 64):
        self.cache = DeviceCache(LAYOUT, NUM_BLOCKS, "cpu")
        self.store = NodeStore(
            [GROUP],
            [self.cache],
            lambda: SyncClient.connect(endpoint, layouts=[LAYOUT], verify="always"),
            deadline_s=deadline_s,
            max_pending_blocks=max_pending_blocks,
        )
        self.store.open()
        self.over = threading.Semaphore(0)
        self.fetched: list[Sequence[TierKind]] = []

    def fill(self) -> None:
        self.cache.tensor.copy_(torch.randn(self.cache.tensor.shape))

    def follow(self, hashes: Sequence[BlockHash]) -> Any:
        run = BlockRun(hashes, range(len(hashes)))
        return self.store.follow([run], self.over.release)

    def fetch(self, hashes: Sequence[BlockHash]) -> None:
        def done(tiers: Sequence[TierKind]) -> None:
            self.fetched.append(tiers)
            self.over.release()

        ids = list(range(len(hashes)))
        self.store.fetch(Wanted(hashes, [ids], first_block=0, num_tokens=1 << 20), done)

    def wait(self) -> None:
        assert self.over.acquire(timeout=DEADLINE_S)

    @property
    def idle(self) -> bool:
        return not self.over.acquire(blocking=False)

    def close(self) -> None:
        self.store.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arenas")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[NodeProcess]:
    with node_process(NodeConfig(host=256 << 20, arena_folder=str(folder))) as process:
        yield process


@pytest.fixture
def start(node: NodeProcess) -> Iterator[Callable[..., Worker]]:
    with ExitStack() as stack:

        def start(endpoint: str = node.zmq_endpoint, **settings: Any) -> Worker:
            worker = Worker(endpoint, **settings)
            stack.callback(worker.close)
            return worker

        yield start


@pytest.fixture
def client(node: NodeProcess) -> Iterator[SyncClient]:
    with SyncClient.connect(node.zmq_endpoint, layouts=[LAYOUT], verify="always") as client:
        yield client


def keys(hashes: Sequence[BlockHash]) -> BlockKeys:
    return BlockKeys(LAYOUT.fingerprint, hashes)


def pending(client: SyncClient, hashes: Sequence[BlockHash]) -> bool:
    with client.acquire(keys(hashes), streaming=True) as lease:
        return len(lease.found) == len(hashes) and all(block.pending for block in lease.found)


def layers_there(client: SyncClient, hashes: Sequence[BlockHash], expected: torch.Tensor) -> int:
    """Leading layers below the watermark; their bytes must be right."""
    with client.acquire(keys(hashes), streaming=True) as lease:
        ready = min(min(lease.layers_ready(block), 4) for block in lease.found)
        for block in lease.found:
            bits = block.torch(LAYOUT)[:ready]
            assert torch.equal(bits, expected[block.index, :ready])
        return ready


def test_layers_are_seen_as_they_are_computed_and_count_with_the_commit(
    start: Any, client: SyncClient
) -> None:
    worker, hashes = start(), new_hashes()
    worker.fill()
    expected = worker.cache.tensor.clone()
    writer = worker.follow(hashes)
    until(lambda: pending(client, hashes), "nothing was reserved")
    assert layers_there(client, hashes, expected) == 0
    for layer in range(3):
        writer.layer_computed(layer)
        until(
            lambda layer=layer: layers_there(client, hashes, expected) == layer + 1,
            "a layer did not come",
        )
    assert len(client.match(keys(hashes))) == 0
    assert worker.idle
    writer.layer_computed(3)
    writer.finish()
    worker.wait()
    assert len(client.match(keys(hashes))) == NUM_BLOCKS
    got = torch.empty_like(expected)
    assert client.get(keys(hashes), got) == {}
    assert torch.equal(got, expected)
    assert worker.store.statistics().published_blocks == NUM_BLOCKS


def test_a_few_blocks_go_in_one_copy_at_the_end(start: Any, client: SyncClient) -> None:
    worker, hashes = start(), new_hashes(2)
    worker.fill()
    writer = worker.follow(hashes)
    until(lambda: pending(client, hashes), "nothing was reserved")
    for layer in range(4):
        writer.layer_computed(layer)
    assert layers_there(client, hashes, worker.cache.tensor) == 0
    writer.finish()
    worker.wait()
    assert layers_there(client, hashes, worker.cache.tensor) == 4


def test_of_an_abandoned_step_nothing_becomes_visible(start: Any, client: SyncClient) -> None:
    worker, hashes = start(), new_hashes()
    worker.fill()
    writer = worker.follow(hashes)
    writer.layer_computed(0)
    until(lambda: pending(client, hashes), "nothing was reserved")
    writer.abandon()
    worker.wait()
    with client.acquire(keys(hashes), streaming=True) as lease:
        assert len(lease.misses) == NUM_BLOCKS
        assert MissReason.PENDING not in lease.misses.values()
    writer = worker.follow(hashes)
    writer.finish()
    worker.wait()
    assert len(client.match(keys(hashes))) == NUM_BLOCKS


def test_blocks_that_failed_are_left_out(start: Any, client: SyncClient) -> None:
    worker, hashes = start(), new_hashes()
    worker.fill()
    worker.follow(hashes).finish(frozenset(hashes[10:20]))
    worker.wait()
    with client.acquire(keys(hashes), streaming=True) as lease:
        assert sorted(lease.misses) == list(range(10, 20))
    assert worker.store.statistics().published_blocks == NUM_BLOCKS - 10


def test_too_many_on_their_way_are_not_taken(start: Any) -> None:
    worker, (first, second) = start(max_pending_blocks=40), (new_hashes(), new_hashes())
    writer = worker.follow(first)
    assert worker.follow(second) is None
    assert not worker.store.publish([BlockRun(second, range(NUM_BLOCKS))], worker.over.release)
    writer.finish()
    worker.wait()
    assert worker.store.statistics().skipped_blocks == NUM_BLOCKS
    assert worker.idle
    worker.follow(second).finish()
    worker.wait()


def test_a_step_longer_than_a_writer_may_take_is_published_at_its_end(
    start: Any, folder: Path
) -> None:
    with node_process(
        NodeConfig(host=64 << 20, arena_folder=str(folder), lease_ttl_ms=300)
    ) as node:
        worker, hashes = start(node.zmq_endpoint), new_hashes()
        worker.fill()
        with SyncClient.connect(node.zmq_endpoint, layouts=[LAYOUT]) as client:
            writer = worker.follow(hashes)
            writer.layer_computed(0)
            until(lambda: pending(client, hashes), "nothing was reserved")
            until(lambda: not pending(client, hashes), "the reservation did not expire")
            writer.finish()
            worker.wait()
            got = torch.empty_like(worker.cache.tensor)
            assert client.get(keys(hashes), got) == {}
            assert torch.equal(got, worker.cache.tensor)


@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_a_node_that_dies_costs_the_blocks_and_nothing_else(
    start: Any, folder: Path, when: str
) -> None:
    with node_process(NodeConfig(host=64 << 20, arena_folder=str(folder))) as node:
        worker, hashes = start(node.zmq_endpoint, deadline_s=0.5), new_hashes()
        worker.fill()
        if when == "before":
            node.kill()
        writer = worker.follow(hashes)
        writer.layer_computed(0)
        if when == "in the middle":
            with SyncClient.connect(node.zmq_endpoint, layouts=[LAYOUT]) as client:
                until(lambda: pending(client, hashes), "nothing was reserved")
            node.kill()
        for layer in range(1, 4):
            writer.layer_computed(layer)
        writer.finish()
        worker.wait()
        assert worker.store.statistics().errors
        assert worker.store.statistics().published_blocks == 0


def test_blocks_being_published_are_loaded_layer_by_layer(start: Any, client: SyncClient) -> None:
    prefill, decode, hashes = start(), start(), new_hashes()
    prefill.fill()
    decode.cache.tensor.zero_()
    writer = prefill.follow(hashes)
    until(lambda: pending(client, hashes), "nothing was reserved")
    decode.fetch(hashes)
    for layer in range(3):
        writer.layer_computed(layer)
        until(
            lambda layer=layer: torch.equal(decode.cache.layer(layer), prefill.cache.layer(layer)),
            "a layer did not come",
        )
    assert not decode.cache.layer(3).any()
    assert decode.idle
    writer.layer_computed(3)
    writer.finish()
    decode.wait()
    assert decode.fetched == [[TierKind.HOST] * NUM_BLOCKS]
    assert torch.equal(decode.cache.tensor, prefill.cache.tensor)


def test_of_a_writer_that_gives_up_only_what_was_committed_before_is_loaded(
    start: Any, client: SyncClient
) -> None:
    prefill, decode, hashes = start(), start(), new_hashes()
    prefill.fill()
    prefill.follow(hashes[:10]).finish()
    prefill.wait()
    writer = prefill.store.follow(
        [BlockRun(hashes[10:], range(10, NUM_BLOCKS))], prefill.over.release
    )
    until(lambda: pending(client, hashes[10:]), "nothing was reserved")
    decode.fetch(hashes)
    writer.layer_computed(0)
    writer.abandon()
    decode.wait()
    assert decode.fetched == [[TierKind.HOST] * 10]
    assert torch.equal(decode.cache.tensor[:10], prefill.cache.tensor[:10])
    prefill.wait()


def test_a_writer_that_is_too_slow_makes_a_miss_and_the_node_is_asked_again(
    start: Any, client: SyncClient
) -> None:
    prefill, decode, hashes = start(), start(deadline_s=0.5), new_hashes()
    prefill.fill()
    writer = prefill.follow(hashes)
    until(lambda: pending(client, hashes), "nothing was reserved")
    decode.fetch(hashes)
    decode.wait()
    writer.finish()
    prefill.wait()
    decode.fetch(hashes)
    decode.wait()
    assert decode.fetched == [[], [TierKind.HOST] * NUM_BLOCKS]
    assert decode.store.statistics().missed_blocks == NUM_BLOCKS


def test_a_node_that_dies_under_a_reader_makes_a_miss(start: Any, folder: Path) -> None:
    with node_process(NodeConfig(host=64 << 20, arena_folder=str(folder))) as node:
        prefill, decode = (start(node.zmq_endpoint, deadline_s=1.0) for _ in range(2))
        hashes = new_hashes()
        prefill.fill()
        decode.cache.tensor.zero_()
        writer = prefill.follow(hashes)
        with SyncClient.connect(node.zmq_endpoint, layouts=[LAYOUT]) as client:
            until(lambda: pending(client, hashes), "nothing was reserved")
        decode.fetch(hashes)
        writer.layer_computed(0)
        until(lambda: bool(decode.cache.layer(0).any()), "a layer did not come")
        node.kill()
        writer.finish()
        decode.wait()
        assert decode.fetched == [[]]
        prefill.wait()
