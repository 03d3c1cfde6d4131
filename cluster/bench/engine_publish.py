"""`kvstore bench engine`: what it costs a prefill worker to put its blocks into the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from cluster.bench.case import BenchOptions, Case
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
from cluster.bench.engine_worker import BlockingClient, spawned_worker
from cluster.bench.spawned_node import spawned_node
from kvstore.client.sync import SyncClient
from kvstore.core.errors import KVStoreError

CASE = "publish_overhead"
PUBLISHING, ALONE = "publishing", "alone"
_HOST_BYTES = 1 << 30


def engine_publish(options: BenchOptions, size: EngineSize = FULL) -> Iterator[Case]:
    """Two prefill workers, one with a node and one without, get the same new prompts in turns.

    Raises KVStoreError if blocks of a prompt are not in the store at the end.
    """
    if not options.wants(CASE):
        return
    with ExitStack() as stack:
        stand = _Stand(stack, options, size)
        works = {name: partial(stand.prefill_s, name) for name in stand.clients}
        for work in works.values():
            work(0)
        turns = in_turns(works, size.prefill_rounds)
        stand.check_published()
    firsts = [
        ours / theirs
        for ours, theirs in zip(stand.ttft_s[PUBLISHING], stand.ttft_s[ALONE], strict=True)
    ]
    note = (
        f"prefill of {size.long_tokens} tokens until all its blocks are in the store; the first "
        f"token alone: ratio {median(firsts[1:]):.3g}"
    )
    yield turns.case(
        CASE, "s", PUBLISHING, ALONE, "a worker without a store", goal="ratio <= 1.05", note=note
    )


@dataclass
class _Stand:
    stack: ExitStack
    options: BenchOptions
    size: EngineSize
    clients: dict[str, BlockingClient] = field(default_factory=dict)
    ttft_s: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = model_folder(self.options.folder, self.size.shape)
        self._prompts = Prompts(vocab_size(model))
        self._of_round: dict[int, list[int]] = {}
        node = self.stack.enter_context(
            spawned_node(self.options.folder, "publish-node", host=_HOST_BYTES)
        )
        blocks = 2 * self.size.blocks_of(self.size.long_tokens)
        for name, endpoint in ((PUBLISHING, node), (ALONE, None)):
            config = worker_config(model, blocks, node=endpoint)
            worker = self.stack.enter_context(spawned_worker("prefill", config))
            self.clients[name] = self.stack.enter_context(closing(BlockingClient(worker)))
            self.ttft_s[name] = []
        self._node = self.stack.enter_context(SyncClient.connect(node, client_name="bench"))

    def prefill_s(self, name: str, number: int) -> float:
        if number not in self._of_round:
            self._of_round[number] = self._prompts.one(self.size.long_tokens)
        answer = self.clients[name].ask(self._of_round[number])
        if answer.hit_tokens:
            raise KVStoreError(f"bench engine: a new prompt hit {answer.hit_tokens}")
        self.ttft_s[name].append(answer.ttft_s)
        return answer.published_s

    def check_published(self) -> None:
        """Every full block of every prompt."""
        blocks = sum(tier.blocks for tier in self._node.statistics().tiers)
        wanted = len(self._of_round) * (self.size.long_tokens // BLOCK_SIZE_TOKENS)
        if blocks != wanted:
            raise KVStoreError(f"bench engine: {blocks} blocks in the store, {wanted} computed")
