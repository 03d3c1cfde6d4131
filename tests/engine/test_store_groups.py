"""Loading several KV groups from a real node: what is loaded is the longest prefix that all of them
can go on after, whatever the node has of each, and its bytes are right."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client.sync import SyncClient
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.layout import KVLayout
from kvstore.node.config import NodeConfig
from kvstore.testing.node_process import NodeProcess, node_process
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.cache import DeviceCache
from model_runner.kv_groups import KVGroup
from model_runner.store import BlockRun, Wanted
from model_runner.store_node import NodeStore

BLOCK, NUM_BLOCKS = 4, 8
_NAMES = iter(range(1 << 20))


def group(layers: tuple[int, ...], window_blocks: int | None) -> KVGroup:
    layout = KVLayout(len(layers), 1, 4, BLOCK, "float32", layers=layers)
    return KVGroup(layout, layers, None if window_blocks is None else window_blocks * BLOCK + 1)


MODELS = {
    "full and two windows": [group((0, 3), None), group((1,), 2), group((2, 4), 3)],
    "two full ones": [group((0, 2), None), group((1,), None)],
    "one window": [group((0, 1, 2), 3)],
}


class Worker:
    def __init__(self, groups: Sequence[KVGroup], endpoint: str) -> None:
        self.groups = groups
        self.caches = [DeviceCache(one.layout, NUM_BLOCKS, "cpu") for one in groups]
        layouts = [one.layout for one in groups]
        self.store = NodeStore(
            groups,
            self.caches,
            lambda: SyncClient.connect(endpoint, layouts=layouts, verify="always"),
            deadline_s=20,
            max_pending_blocks=1_000,
        )
        self.store.open()

    def publish(self, runs: Sequence[BlockRun]) -> None:
        done = threading.Event()
        assert self.store.publish(runs, done.set)
        assert done.wait(30)

    def fetch(self, hashes: Sequence[BlockHash], first_block: int = 0) -> Sequence[TierKind]:
        done = threading.Event()
        fetched: list[Sequence[TierKind]] = []

        def answer(tiers: Sequence[TierKind]) -> None:
            fetched.append(tiers)
            done.set()

        num_blocks = len(hashes)
        ids = [list(range(num_blocks - one.first_block(num_blocks))) for one in self.groups]
        self.store.fetch(Wanted(hashes, ids, first_block, num_tokens=1 << 20), answer)
        assert done.wait(30)
        return fetched[0]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    folder: Path = tmp_path_factory.mktemp("arenas")
    with node_process(NodeConfig(host=64 << 20, arena_folder=str(folder))) as process:
        yield process


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def workers(request: pytest.FixtureRequest, node: NodeProcess) -> Iterator[tuple[Worker, Worker]]:
    """One that publishes, and one that loads."""
    pair = Worker(request.param, node.zmq_endpoint), Worker(request.param, node.zmq_endpoint)
    yield pair
    for worker in pair:
        worker.store.close()


def usable(groups: Sequence[KVGroup], there: Sequence[Sequence[bool]], end: int) -> bool:
    return all(
        all(present[one.first_block(end) : end]) for one, present in zip(groups, there, strict=True)
    )


_presence = st.lists(
    st.lists(st.sampled_from([True, True, True, False]), min_size=NUM_BLOCKS, max_size=NUM_BLOCKS),
    min_size=3,
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(_presence, st.integers(1, NUM_BLOCKS))
def test_what_is_loaded_is_the_longest_usable_prefix(
    workers: tuple[Worker, Worker], presence: list[list[bool]], num_wanted: int
) -> None:
    writer, reader = workers
    groups, there = writer.groups, presence[: len(writer.groups)]
    if all(one.window_tokens is not None for one in groups):  # their leading blocks tell how far
        there = [present[: [*present, False].index(False)] for present in there]
        there = [present + [False] * (NUM_BLOCKS - len(present)) for present in there]
    hashes = [BlockHash(next(_NAMES).to_bytes(32, "big")) for _ in range(NUM_BLOCKS)]
    for cache in writer.caches:
        cache.tensor.copy_(torch.randn(cache.tensor.shape))
    writer.publish(
        [
            BlockRun(
                [hashes[i] for i in range(NUM_BLOCKS) if present[i]],
                [i for i in range(NUM_BLOCKS) if present[i]],
                number,
            )
            for number, present in enumerate(there)
        ]
    )
    longest = max(n for n in range(num_wanted + 1) if usable(groups, there, n))
    assert reader.fetch(hashes[:num_wanted]) == [TierKind.HOST] * longest
    for one, source, target in zip(groups, writer.caches, reader.caches, strict=True):
        loaded = source.tensor[one.first_block(longest) : longest]
        assert torch.equal(target.tensor[: len(loaded)], loaded)


def test_layers_of_all_groups_go_to_their_places(node: NodeProcess) -> None:
    """Told by their index in the model."""
    groups = MODELS["full and two windows"]
    worker = Worker(groups, node.zmq_endpoint)
    for cache in worker.caches:
        cache.tensor.copy_(torch.randn(cache.tensor.shape))
    hashes = [BlockHash(next(_NAMES).to_bytes(32, "big")) for _ in range(3)]
    done = threading.Event()
    runs = [BlockRun(hashes, [4, 0, 6], number) for number in range(3)]
    writer = worker.store.follow(runs, done.set)
    assert writer is not None
    for layer in range(5):
        writer.layer_computed(layer)
    writer.finish()
    assert done.wait(30)
    layouts = [one.layout for one in groups]
    with SyncClient.connect(node.zmq_endpoint, layouts=layouts) as client:
        for layout, cache in zip(layouts, worker.caches, strict=True):
            got = np.empty((3, *layout.shape), np.float32)
            assert client.get(BlockKeys(layout.fingerprint, hashes), got) == {}
            assert (got == cache.tensor[[4, 0, 6]].numpy()).all()
    worker.store.close()
