"""`kvstore bench engine`: time to first token of a long prompt, most of which is cached somewhere.

One prefill worker at a node with a host and a disk tier, and a second node that the first one
pulls from over ZeroMQ; all processes of their own. In each round the worker gets a new prompt, and
then, for each tier, one that begins as a prompt which is cached there. In between its device tier,
which holds little more than one prompt, forgets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial

from cluster.bench.case import BenchOptions, Case
from cluster.bench.engine_blocks import Blocks
from cluster.bench.engine_setup import (
    BLOCK_SIZE_TOKENS,
    FULL,
    EngineSize,
    Prompts,
    model_folder,
    vocab_size,
    worker_config,
)
from cluster.bench.engine_turns import in_turns
from cluster.bench.engine_worker import Answer, BlockingClient, spawned_worker
from cluster.bench.spawned_node import spawned_node
from kvstore.client.sync import SyncClient
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockKeys
from kvstore.tiers.base import TierKind

COLD = "cold"
_CASES = {
    "ttft_95_host": (TierKind.HOST, "ratio <= 0.15"),
    "ttft_95_disk": (TierKind.DISK, "ratio <= 0.25"),
    "ttft_95_remote": (TierKind.REMOTE, "ratio <= 0.30"),
}
_HOST_PROMPTS = 8
"""How many long prompts the node's host tier holds: enough that what is pulled, which may take up a
part of it only, fits beside what is to be found there."""
_DISK_BYTES = 4 << 30


def engine_ttft(options: BenchOptions, size: EngineSize = FULL) -> Iterator[Case]:
    """Raises KVStoreError if a hit is not where it should be: all from that tier, nothing else."""
    if not options.wants(*_CASES):
        return
    with ExitStack() as stack:
        stand = _Stand(stack, options, size)
        works = {COLD: stand.cold_s} | {
            tier.name: partial(stand.warm_s, tier) for tier, _ in _CASES.values()
        }
        for work in works.values():
            work(0)
        turns = in_turns(works, size.prefill_rounds)
    note = (
        f"{size.long_tokens} tokens, {size.cached_tokens} of them from there in every round; "
        "at the client, over gRPC"
    )
    for name, (tier, goal) in _CASES.items():
        yield turns.case(
            name, "s", tier.name, COLD, "a new prompt, same worker", goal=goal, note=note
        )


class _Stand:
    """The worker and its nodes, and a prompt for each tier whose blocks are kept there."""

    def __init__(self, stack: ExitStack, options: BenchOptions, size: EngineSize) -> None:
        self._size = size
        model = model_folder(options.folder, size.shape)
        self._prompts = Prompts(vocab_size(model))
        device_blocks = size.blocks_of(size.long_tokens + 2 * BLOCK_SIZE_TOKENS)
        bytes_per_token = _kv_bytes_per_token(size)
        self._host_bytes = _HOST_PROMPTS * size.long_tokens * bytes_per_token
        peer = stack.enter_context(
            spawned_node(
                options.folder,
                "ttft-peer",
                host=self._host_bytes,
                zmq_endpoint="tcp://127.0.0.1:0",
            )
        )
        node = stack.enter_context(
            spawned_node(
                options.folder,
                "ttft-node",
                host=self._host_bytes,
                disk=_DISK_BYTES,
                disk_path=options.folder / "ttft-disk",
                eviction="lru",  # what is asked for again must not stay when it has to leave
                peers=peer,
            )
        )
        worker = stack.enter_context(
            spawned_worker("prefill", worker_config(model, device_blocks, node=node))
        )
        self._client = stack.enter_context(closing(BlockingClient(worker)))
        layouts = [worker.identity.layout]
        clients = [
            stack.enter_context(SyncClient.connect(endpoint, client_name="bench", layouts=layouts))
            for endpoint in (node, peer)
        ]
        self._blocks = Blocks(worker.identity, *clients)
        self._arrange: Mapping[TierKind, Callable[[BlockKeys], None]] = {
            TierKind.HOST: self._blocks.to_host,
            TierKind.DISK: partial(self._blocks.to_disk_only, host_bytes=self._host_bytes),
            TierKind.REMOTE: self._blocks.to_peer_only,
        }
        self._prefixes = {tier: self._prompts.one(size.cached_tokens) for tier in self._arrange}
        for prefix in self._prefixes.values():
            self._client.ask(prefix)

    def cold_s(self, number: int) -> float:
        answer = self._client.ask(self._prompts.one(self._size.long_tokens))
        self._check(answer, {})
        return answer.ttft_s

    def warm_s(self, tier: TierKind, number: int) -> float:
        prefix = self._prefixes[tier]
        self._arrange[tier](self._blocks.keys(prefix))
        rest = self._prompts.one(self._size.long_tokens - len(prefix))
        answer = self._client.ask([*prefix, *rest])
        self._check(answer, {tier: self._size.cached_tokens})
        return answer.ttft_s

    def _check(self, answer: Answer, expected: Mapping[TierKind, int]) -> None:
        if answer.hit_tokens != expected:
            raise KVStoreError(
                f"bench engine: hits {_told(answer.hit_tokens)}, and {_told(expected)} were "
                "arranged: the time of something else is no figure"
            )


def _told(hits: Mapping[TierKind, int]) -> str:
    return ", ".join(f"{tier.name} {tokens}" for tier, tokens in hits.items()) or "none"


def _kv_bytes_per_token(size: EngineSize) -> int:
    """K and V in float32."""
    shape = size.shape
    head_dim = shape.hidden_size // shape.num_heads
    return shape.num_layers * 2 * shape.num_kv_heads * head_dim * 4
