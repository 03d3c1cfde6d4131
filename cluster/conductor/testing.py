"""For tests of policies: prospects of workers that the test describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from cluster.conductor.columns import Columns, Field
from cluster.conductor.context import Context
from cluster.conductor.matching import Match, PrefixGroup, TierBlocks
from cluster.conductor.prospects import Prospects
from cluster.conductor.types import Member, ModelInfo, Request, Role
from cluster.conductor.view import ModelView
from kvstore.core.ids import MemberId, NodeId, RequestId
from kvstore.core.layout import KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=64, block_size_tokens=16, dtype="float32")
MODEL = ModelInfo("tiny", b"r" * 32, LAYOUT, 4096, "/models/tiny")
NOW_S = 100.0
_NO_PREFIX = TierBlocks()


@dataclass(frozen=True, slots=True)
class StagedWorker:
    """What is known of a worker. Coefficients are per token, per pair, per byte, per sequence."""

    name: str
    role: Role = Role.DECODE
    node: str = ""
    """A store node of this name is there, too; empty: none."""
    zone: str = ""
    queue_s: float = 0.0
    stall_s: float = 0.0
    routed: int = 0
    link_s: float = 0.0
    """Until the network link of its node is free."""
    running: int = 0
    free_blocks: float = inf
    total_blocks: float = inf
    sequences: int = 0
    promised_blocks: int = 0
    tokens: float = 0.0
    targeted: int = 0
    itl_target_s: float = inf
    """Of each of those targeted."""
    prefix: TierBlocks = _NO_PREFIX
    prefill: tuple[float, float, float] = (0.005, 1e-4, 1e-8)
    load: tuple[float, float, float, float, float] = (0.002, 5e-10, 2e-9, 0.003, 1e-9)
    step: tuple[float, float, float] = (0.02, 1e-3, 2e-8)


def stage(
    workers: Sequence[StagedWorker],
    request: Request | None = None,
    *,
    on_nodes: int = 0,
    answer_tokens: float = 64.0,
    across_zones: float = 4.0,
) -> Prospects:
    """What a policy would see of these workers, in an order of its own: see `prospects.view`.

    `on_nodes`: blocks of the prompt that some node has, whichever.
    """
    names = sorted({worker.node for worker in workers if worker.node})
    nodes = {NodeId(name): slot for slot, name in enumerate(names, len(workers))}
    columns = Columns()
    for slot in range(len(workers) + len(nodes)):
        columns.clear(slot)
    for slot, worker in enumerate(workers):
        _describe(columns, slot, worker, nodes.get(NodeId(worker.node), slot))
    view = ModelView([(slot, _member(worker)) for slot, worker in enumerate(workers)], nodes)
    prefixes = [PrefixGroup(1 << s, w.prefix) for s, w in enumerate(workers) if w.prefix.total]
    context = Context(request or a_request(), LAYOUT, NOW_S, answer_tokens, across_zones)
    return Prospects(context, view, Match(prefixes, on_nodes), columns.values)


def a_request(tokens: int = 1600, name: str = "r") -> Request:
    keys = range(1, tokens // LAYOUT.block_size_tokens + 1)
    return Request(RequestId(name), MODEL.name, list(keys), tokens, max_tokens=64)  # type: ignore[arg-type]


def _member(worker: StagedWorker) -> Member:
    return Member(
        MemberId(worker.name),
        worker.role,
        f"{worker.name}:1",
        NodeId(worker.node),
        model=MODEL,
        zone=worker.zone,
    )


def _describe(columns: Columns, slot: int, worker: StagedWorker, link_slot: int) -> None:
    values = columns.values
    values[Field.LINK_UNTIL_S, link_slot] = NOW_S + worker.link_s
    tightness = worker.targeted / worker.itl_target_s
    values[: Field.PREFILL_S, slot] = [
        NOW_S + worker.queue_s,
        NOW_S,
        worker.routed,
        worker.stall_s,
        values[Field.LINK_UNTIL_S, slot],
        worker.running,
        worker.free_blocks,
        worker.total_blocks,
        worker.sequences,
        worker.promised_blocks,
        worker.tokens,
        worker.targeted,
        tightness,
    ]
    values[Field.PREFILL_S :, slot] = [*worker.prefill, *worker.load, *worker.step]
