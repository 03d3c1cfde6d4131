"""`kvstore bench index`: whole decisions in process, from token ids to a placement."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from statistics import median, quantiles

from cluster.bench.case import BenchOptions, Case
from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.feed import IndexFeed
from cluster.conductor.prompt_keys import PromptKeys
from cluster.conductor.types import Load, Member, ModelInfo, Outcome, Request, Role
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockKeys, MemberId, NodeId, RequestId
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import TierKind

WORKERS, NODES, COPIES = 256, 32, 4
CONVERSATIONS, BLOCKS, NEW_BLOCKS = 500, 200, 12
DECISIONS, WARM_UP = 2000, 200
P50, P99, LONG = "decision_p50_us_256", "decision_p99_us_256", "long_prompt_ms"
_LONG_TOKENS, _LONG_ROUNDS = 100_000, 20
_BLOCK_TOKENS = 16
_IN_FLIGHT = 64
_SEED = 1
_LAYOUT = KVLayout(32, 8, 128, _BLOCK_TOKENS, "bfloat16")
_MODEL = ModelInfo("model", bytes(32), _LAYOUT, 131_072, "model")


def index_decision(options: BenchOptions) -> Iterator[Case]:
    """Half of the workers prefill, half decode."""
    if options.wants(P50, P99):
        yield from _decision_cases()
    if options.wants(LONG):
        yield _long_case()


def _decision_cases() -> Iterator[Case]:
    cluster = DecidingCluster(CONVERSATIONS, (BLOCKS - NEW_BLOCKS) * _BLOCK_TOKENS)
    turns = _percentiles(cluster.next_turn, cluster)
    new = _percentiles(lambda _: cluster.tokens(BLOCKS * _BLOCK_TOKENS), cluster)
    note = (
        f"{BLOCKS} blocks, of which the last {NEW_BLOCKS} are new; {{:.4g}} us if none of the "
        f"tokens was ever asked for; {WORKERS // 2} prefill and {WORKERS // 2} decode workers"
    )
    yield Case(P50, turns[49], "us", note=note.format(new[49]), goal="<= 150")
    yield Case(P99, turns[98], "us", note=note.format(new[98]), goal="<= 600")


def _percentiles(prompt: Callable[[int], list[int]], cluster: DecidingCluster) -> list[float]:
    """Microseconds, of 1 to 99 %."""
    prompts = [prompt(number) for number in range(WARM_UP + DECISIONS)]
    times_s = [cluster.decide(token_ids) for token_ids in prompts]
    return [seconds * 1e6 for seconds in quantiles(times_s[WARM_UP:], n=100)]


def _long_case() -> Case:
    cluster = DecidingCluster(1, _LONG_TOKENS)
    prompt = cluster.next_turn(0)[:_LONG_TOKENS]
    times_s = []
    for _ in range(_LONG_ROUNDS):
        cluster.forget_prompts()
        started_s = time.process_time()
        cluster.decide(prompt)
        times_s.append(time.process_time() - started_s)
    note = f"CPU; {_LONG_TOKENS:,} tokens, none of them hashed before; all blocks indexed"
    return Case(LONG, median(times_s) * 1e3, "ms", note=note, goal="<= 10")


class DecidingCluster:
    """A conductor with workers and nodes that hold the beginnings of conversations."""

    def __init__(self, conversations: int, tokens: int) -> None:
        self._rng = random.Random(_SEED)  # noqa: S311
        self._conductor = Conductor(make_policy("joint"), time.monotonic, member_ttl_s=3600.0)
        self._prompt_keys = PromptKeys()
        self._placed: list[RequestId] = []
        self._number = 0
        self._conversations = [self.tokens(tokens) for _ in range(conversations)]
        feeds = _register(self._conductor)
        for conversation in self._conversations:
            hashes = block_hashes(_MODEL.identity_root, conversation, _BLOCK_TOKENS)
            for feed in self._rng.sample(feeds, COPIES):
                feed.stored(TierKind.DEVICE, BlockKeys(_LAYOUT.fingerprint, hashes))
            self._prompt_keys.of(_MODEL.identity_root, conversation, _BLOCK_TOKENS)

    def tokens(self, count: int) -> list[int]:
        """Nobody has seen these."""
        return [self._rng.randrange(128_000) for _ in range(count)]

    def next_turn(self, number: int) -> list[int]:
        """Of one conversation after the other."""
        conversation = self._conversations[number % len(self._conversations)]
        return conversation + self.tokens(NEW_BLOCKS * _BLOCK_TOKENS)

    def forget_prompts(self) -> None:
        self._prompt_keys = PromptKeys()

    def decide(self, token_ids: list[int]) -> float:
        """Seconds of what gateway and conductor do until they know where this prompt goes. Earlier
        requests complete meanwhile."""
        self._number += 1
        request_id = RequestId(str(self._number))
        started_s = time.perf_counter()
        keys = self._prompt_keys.of(_MODEL.identity_root, token_ids, _BLOCK_TOKENS)
        self._conductor.route(Request(request_id, _MODEL.name, keys, len(token_ids), 128))
        elapsed_s = time.perf_counter() - started_s
        self._placed.append(request_id)
        if len(self._placed) > _IN_FLIGHT:
            self._conductor.complete(Outcome(self._placed.pop(0)))
        return elapsed_s


def _register(conductor: Conductor) -> list[IndexFeed]:
    """Returns the feeds of the prefill workers."""
    for number in range(NODES):
        node_id = NodeId(f"node-{number}")
        conductor.register(Member(MemberId(node_id), Role.NODE, "127.0.0.1:1", node_id), 1)
    feeds = []
    for number in range(WORKERS):
        role = Role.PREFILL if number % 2 else Role.DECODE
        node_id = NodeId(f"node-{number % NODES}")
        member_id = MemberId(f"worker-{number}")
        member = Member(member_id, role, "127.0.0.1:1", node_id, model=_MODEL)
        feed = conductor.register(member, 1)
        conductor.heartbeat(member_id, 1, Load(total_blocks=100_000, free_blocks=100_000))
        if feed is not None and role is Role.PREFILL:
            feeds.append(feed)
    return feeds
