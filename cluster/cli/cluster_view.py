"""What a running cluster says about itself: asked over gRPC, shown as tables or JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.membership.client import ConductorClient
from cluster.wire.v1 import conductor_pb2
from kvstore.transports.grpc.channel import open_grpc
from kvstore.transports.security.interceptor import bearer
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.transports.status import from_rpc_error
from kvstore.wire.v1 import block_pb2, node_pb2, node_pb2_grpc

SILENT_S = 3.0
"""Members tell their load every second: from here on something is wrong."""
PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""


@dataclass(frozen=True)
class NodeView:
    """A node's statistics, or why there are none."""

    node_id: str
    statistics: node_pb2.StatisticsResponse | None
    error: str = ""


@dataclass(frozen=True)
class ClusterView:
    members: list[conductor_pb2.MemberStatus]
    nodes: list[NodeView]


async def fetch_view(
    conductor: str, timeout_s: float, keys: ClientKeys = NO_CLIENT_KEYS
) -> ClusterView:
    """Ask the conductor for its members and every node for its statistics.

    Raises UnavailableError or DeadlineExceededError if the conductor does not answer; a node that
    does not is shown with its error.
    """
    async with ConductorClient(conductor, keys=keys, deadline_s=timeout_s) as client:
        members = await client.list_members()
    nodes = [m.member for m in members if m.member.role == conductor_pb2.ROLE_NODE]
    return ClusterView(
        members, await asyncio.gather(*(_node_view(member, timeout_s, keys) for member in nodes))
    )


async def _node_view(member: conductor_pb2.Member, timeout_s: float, keys: ClientKeys) -> NodeView:
    try:
        async with open_grpc(member.grpc_address, keys, ()) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)  # type: ignore[no-untyped-call]
            statistics = await stub.Statistics(
                node_pb2.StatisticsRequest(), timeout=timeout_s, metadata=bearer(keys.token)
            )
    except grpc.aio.AioRpcError as error:
        reason = from_rpc_error(error, member.grpc_address)
        return NodeView(member.member_id, None, str(reason))
    return NodeView(member.member_id, statistics)


def print_view(view: ClusterView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(as_dict(view)))
        return
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=PLAIN_WIDTH)
    console.print(_members_table(view.members), _tiers_table(view.nodes), _misses_table(view.nodes))


def as_dict(view: ClusterView) -> dict[str, object]:
    return {
        "members": [_message(member) for member in view.members],
        "nodes": [
            {"node_id": node.node_id, "error": node.error}
            if node.statistics is None
            else _message(node.statistics)
            for node in view.nodes
        ],
    }


def _message(
    message: conductor_pb2.MemberStatus | node_pb2.StatisticsResponse,
) -> dict[str, object]:
    return dict(
        MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    )


def _table(title: str, names: Iterable[str], numbers: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _members_table(members: Iterable[conductor_pb2.MemberStatus]) -> Table:
    table = _table(
        "Members",
        ("member", "role", "state", "node", "address", "model"),
        ("running", "waiting", "free blocks", "indexed"),
    )
    for status in members:
        member, load = status.member, status.load
        role = conductor_pb2.Role.Name(member.role).removeprefix("ROLE_").lower()
        blocks = f"{load.free_blocks}/{load.total_blocks}" if load.total_blocks else ""
        names = (member.node_id, member.grpc_address, member.model.name)
        counts = (str(load.running), str(load.waiting), blocks, str(status.indexed_blocks))
        table.add_row(member.member_id, role, _state(status), *names, *counts)
    return table


def _state(status: conductor_pb2.MemberStatus) -> str:
    if status.draining:
        return "draining"
    return "ready" if status.silent_s < SILENT_S else f"silent for {status.silent_s:.0f} s"


def _tiers_table(nodes: Iterable[NodeView]) -> Table:
    table = _table(
        "Tiers",
        ("node", "tier"),
        ("MiB", "of", "full", "blocks", "hits", "evicted", "corrupt", "errors"),
    )
    for node in nodes:
        if node.statistics is None:
            table.add_row(node.node_id, Text(node.error, "red"))
            continue
        for tier in node.statistics.tiers:
            table.add_row(node.node_id, *_tier_cells(tier))
    return table


def _tier_cells(tier: node_pb2.TierStatistics) -> list[str]:
    name = block_pb2.Tier.Name(tier.tier).removeprefix("TIER_").lower()
    used, capacity = tier.used_bytes / 2**20, tier.capacity_bytes / 2**20
    full = f"{used / capacity:.0%}" if capacity else ""
    counts = (tier.blocks, tier.hits, tier.evictions, tier.corruptions, tier.errors)
    return [name, f"{used:.1f}", f"{capacity:.1f}", full, *map(str, counts)]


def _misses_table(nodes: Iterable[NodeView]) -> Table:
    table = _table("Misses", ("node", "reason"), ("blocks",))
    for node in nodes:
        for miss in node.statistics.misses if node.statistics else ():
            reason = block_pb2.MissReason.Name(miss.reason).removeprefix("MISS_REASON_").lower()
            table.add_row(node.node_id, reason.replace("_", " "), str(miss.blocks))
    return table
