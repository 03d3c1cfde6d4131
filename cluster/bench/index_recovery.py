"""`kvstore bench index`: how soon the index is right again, over real sockets."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

from cluster.bench import index_publishers
from cluster.bench.case import BenchOptions, Case
from cluster.bench.driven_peer import DrivenPeer, driven_peer
from cluster.bench.index_relay import LATE, LOST, Relay
from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.feed import IndexFeed
from cluster.conductor.index import PrefixIndex
from cluster.conductor.routing_keys import KEY_BYTES, RoutingKeys
from cluster.conductor.types import Member, ModelInfo, Outcome, Request, Role
from cluster.membership.views import Views
from kvstore.core.errors import UnavailableError
from kvstore.core.ids import MemberId, NodeId, RequestId
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import TierKind

FAULTS, SNAPSHOTS = "recovery_s_faults", "recovery_s_2m_blocks"
_MEMBERS, _BLOCKS, _BATCHES_PER_S = 8, 5_000, 50.0
_MANY_MEMBERS, _MANY_BLOCKS = 16, 2_000_000
_PAUSE_S = 1.0
_DEADLINE_S = 60.0
_REQUEST_EVERY_S = 0.005
_LAYOUT = KVLayout(32, 8, 128, 16, "bfloat16")
_MODEL = ModelInfo("model", bytes(32), _LAYOUT, 131_072, "model")


def index_recovery(options: BenchOptions) -> Iterator[Case]:
    """Raises UnavailableError if the index never gets right."""
    if options.wants(FAULTS):
        note = (
            f"{LOST:.0%} of the batches lost, {LATE:.0%} reordered; {_MEMBERS} publishers killed "
            "and restarted, the conductor replaced 0.5 s before quiet; each block compared"
        )
        yield Case(FAULTS, asyncio.run(after_faults(_PAUSE_S)), "s", note=note, goal="<= 1")
    if options.wants(SNAPSHOTS):
        yield asyncio.run(relearned(_MANY_MEMBERS, _MANY_BLOCKS))


@dataclass(frozen=True, slots=True)
class Digest:
    """Of what a member holds: equal ones are of the same blocks, as far as 64 bits can tell."""

    blocks: int
    key_sum: int


@dataclass(frozen=True, slots=True)
class Publisher:
    epoch: int
    event_endpoint: str
    replay_endpoint: str


class Publishers:
    """Commands of `index_publishers`, without blocking the loop."""

    def __init__(self, peer: DrivenPeer) -> None:
        self._peer = peer

    async def start(
        self, members: int, blocks: int, seed: int, again: Sequence[Publisher] = ()
    ) -> list[Publisher]:
        """`again`: those whose endpoints are taken over."""
        endpoints = [[one.event_endpoint, one.replay_endpoint] for one in again]
        arguments = {"members": members, "blocks": blocks, "seed": seed, "endpoints": endpoints}
        return [Publisher(*one) for one in await self._command("start", **arguments)]

    async def change(self) -> None:
        await self._command("change", per_s=_BATCHES_PER_S)

    async def quiet(self) -> list[Digest]:
        return [Digest(*one) for one in await self._command("quiet")]

    def kill(self) -> None:
        self._peer.kill()

    async def _command(self, verb: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(self._peer.command, verb, **arguments)


class View:
    """The index of a conductor, without the rest of it: its members are 0, 1, 2, ..."""

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self._views = Views()
        self._epochs: dict[int, int] = {}

    async def follow(self, publishers: Sequence[Publisher], relays: Sequence[Relay]) -> None:
        """From now on, as if they had just registered."""
        for slot, (publisher, relay) in enumerate(zip(publishers, relays, strict=True)):
            self._index.forget(slot)
            self._epochs[slot] = publisher.epoch
            feed = IndexFeed(self._index, slot, partial(self._is_of, slot, publisher.epoch))
            member = _member(slot, relay.endpoint, publisher.replay_endpoint)
            await self._views.open(member, publisher.epoch, feed)

    async def close(self) -> None:
        await self._views.close_all()

    def digest(self, slot: int) -> Digest:
        keys = self._index.held(slot, TierKind.DEVICE)
        return Digest(len(keys), sum(keys) % 2**64)

    def _is_of(self, slot: int, epoch: int) -> bool:
        return self._epochs[slot] == epoch


async def after_faults(pause_s: float) -> float:
    """Seconds from quiet until the index is right."""
    async with AsyncExitStack() as exits:
        first = Publishers(exits.enter_context(_publishers()))
        publishers = await first.start(_MEMBERS, _BLOCKS, seed=0)
        relays = [Relay(one.event_endpoint, seed) for seed, one in enumerate(publishers)]
        for relay in relays:
            relay.start()
            exits.push_async_callback(relay.stop)
        view = View()
        await view.follow(publishers, relays)
        await first.change()
        await asyncio.sleep(2 * pause_s)
        first.kill()
        second = Publishers(exits.enter_context(_publishers()))
        publishers = await second.start(_MEMBERS, _BLOCKS, seed=_MEMBERS, again=publishers)
        await view.follow(publishers, relays)
        await second.change()
        await asyncio.sleep(pause_s)
        await view.close()
        view = View()
        exits.push_async_callback(view.close)
        await view.follow(publishers, relays)
        await asyncio.sleep(pause_s / 2)
        truth = await second.quiet()
        assert sum(relay.lost for relay in relays), "nothing was lost: the case shows nothing"
        return await _until_equal(view, truth)


async def _until_equal(view: View, truth: Sequence[Digest]) -> float:
    started_s = time.monotonic()
    wrong = set(range(len(truth)))
    while wrong:
        await asyncio.sleep(0.01)
        wrong = {slot for slot in wrong if view.digest(slot) != truth[slot]}
        _check_time(started_s)
    return time.monotonic() - started_s


async def relearned(members: int, blocks: int) -> Case:
    """Into a conductor that was just started, and places requests meanwhile."""
    async with AsyncExitStack() as exits:
        peer = Publishers(exits.enter_context(_publishers()))
        publishers = await peer.start(members, blocks // members, seed=0)
        conductor = Conductor(make_policy("joint"), time.monotonic, member_ttl_s=_DEADLINE_S)
        views = Views()
        exits.push_async_callback(views.close_all)
        started_s = time.monotonic()
        for slot, publisher in enumerate(publishers):
            member = _member(slot, publisher.event_endpoint, publisher.replay_endpoint)
            feed = conductor.register(member, publisher.epoch)
            assert feed is not None
            await views.open(member, publisher.epoch, feed)
        waits_s: list[float] = []
        while conductor.statistics().indexed_blocks < blocks:
            waits_s.append(await _route(conductor, len(waits_s)))
            _check_time(started_s)
        elapsed_s = time.monotonic() - started_s
    p99_ms = quantiles(waits_s, n=100)[98] * 1e3
    note = f"{members} snapshots; p99 of a decision meanwhile, with its wait: {p99_ms:.3g} ms"
    return Case(SNAPSHOTS, elapsed_s, "s", note=note, goal="<= 5")


async def _route(conductor: Conductor, number: int) -> float:
    """Of a request that comes in a while: seconds until it is placed."""
    keys = RoutingKeys(random.Random(number).randbytes(200 * KEY_BYTES))  # noqa: S311
    due_s = time.monotonic() + _REQUEST_EVERY_S
    await asyncio.sleep(_REQUEST_EVERY_S)
    request_id = RequestId(str(number))
    conductor.route(Request(request_id, _MODEL.name, keys, 3210, 128))
    conductor.complete(Outcome(request_id))
    return time.monotonic() - due_s


def _member(slot: int, event_endpoint: str, replay_endpoint: str) -> Member:
    return Member(
        MemberId(f"worker-{slot}"),
        Role.DECODE,
        "127.0.0.1:1",
        NodeId(""),
        event_endpoint,
        replay_endpoint,
        _MODEL,
    )


def _publishers() -> AbstractContextManager[DrivenPeer]:
    driver = Path(index_publishers.__file__)
    return driven_peer("the publishers", Path(sys.executable), driver)


def _check_time(started_s: float) -> None:
    if time.monotonic() - started_s > _DEADLINE_S:
        raise UnavailableError(f"bench index: the index is not right after {_DEADLINE_S:g} s")
