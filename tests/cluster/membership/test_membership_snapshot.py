"""What a conductor knows is there again after its restart, or it starts with nothing."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.config import ConductorConfig
from cluster.conductor.feed import IndexFeed
from cluster.conductor.kept import KeptRun
from cluster.conductor.routing_keys import RoutingKeys
from cluster.conductor.types import Load, Member, ModelInfo, Outcome, Request, Role
from cluster.membership.client import ConductorClient
from cluster.membership.convert_snapshot import (
    blocks_to,
    header_to,
    positions_from,
    runs_from,
    state_from,
)
from cluster.membership.frames import BYTES_MAX, MAGIC, frame, read_file, write_file
from cluster.membership.server import ConductorServer
from cluster.membership.snapshot import read_snapshot
from cluster.membership.views import Position
from cluster.wire.v1 import conductor_pb2, snapshot_pb2
from kvstore.core.errors import ChecksumError, KVStoreError, ProtocolError, ResourceExhaustedError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint, MemberId, NodeId, RequestId
from kvstore.core.layout import KVLayout
from kvstore.testing.clock import ManualClock
from kvstore.tiers.base import TierKind

from .members import FINGERPRINT, KEYS, FakeMember, request, until, worker

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_size_tokens=16, dtype="float32")
MODEL = ModelInfo("tiny", b"r" * 32, LAYOUT, 4096, "/models/tiny")
TIERS = (TierKind.DEVICE, TierKind.HOST, TierKind.DISK)


def config(folder: Path, **fields: object) -> ConductorConfig:
    return ConductorConfig(
        grpc_address=f"unix:{folder}/conductor",
        snapshot=folder / "kept" / "snapshot",
        snapshot_every_ms=50,
        **fields,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def serving(settings: ConductorConfig) -> AsyncIterator[ConductorServer]:
    server = ConductorServer(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def hashes(*numbers: int) -> list[BlockHash]:
    return [BlockHash(number.to_bytes(32, "little")) for number in numbers]


async def test_it_places_at_once_by_what_it_knew(tmp_path: Path) -> None:
    settings = config(tmp_path)
    member = FakeMember(worker("d-0", conductor_pb2.ROLE_DECODE), 7, {TierKind.DEVICE: KEYS[:6]})
    async with serving(settings) as server, ConductorClient(server.address) as client:
        await member.start(server.address)
        await until(lambda: server.statistics().indexed_blocks == 6)
        await client.route(request("a"))
        outcome = {"ttft_s": 3.0, "prefill_compute_s": 3.0, "computed_tokens": 69}
        await client.complete(conductor_pb2.CompleteRequest(request_id="a", **outcome))
        slow = (await client.route(request("b", blocks=0))).chosen.prefill_s
    await member.registrar.stop()  # nobody tells the next conductor of this member

    async with serving(settings) as server, ConductorClient(server.address) as client:
        placed = await client.route(request("c"))
        assert placed.decode == member.member
        assert placed.chosen.device_tokens == 6 * 16
        again = (await client.route(request("d", blocks=0))).chosen.prefill_s
        assert again == pytest.approx(slow)
    await member.publisher.stop()


async def test_only_what_was_missed_is_asked_for(tmp_path: Path) -> None:
    settings = config(tmp_path)
    member = FakeMember(worker("d-0", conductor_pb2.ROLE_DECODE), 7, {TierKind.DEVICE: KEYS[:6]})
    async with serving(settings) as server:
        await member.start(server.address)
        await until(lambda: server.statistics().indexed_blocks == 6)
    snapshots = member.publisher.statistics().snapshots
    member.publisher.removed(TierKind.DEVICE, KEYS[4:6])
    member.publisher.stored(TierKind.DEVICE, KEYS[6:9])
    member.held = {TierKind.DEVICE: BlockKeys(FINGERPRINT, [])}  # nobody should ask for it
    async with serving(settings) as server, ConductorClient(server.address) as client:
        await until(lambda: server.statistics().indexed_blocks == 7)
        placed = await client.route(request("a"))
        assert placed.chosen.device_tokens == 4 * 16
        member.publisher.stored(TierKind.DEVICE, KEYS[4:6])
        await until(lambda: server.statistics().indexed_blocks >= 9)
    assert member.publisher.statistics().snapshots == snapshots
    await member.stop()


async def test_who_restarted_meanwhile_is_learned_anew(tmp_path: Path) -> None:
    settings = config(tmp_path)
    before = FakeMember(worker("d-0", conductor_pb2.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS})
    async with serving(settings) as server:
        await before.start(server.address)
        await until(lambda: server.statistics().indexed_blocks == 10)
    await before.kill()
    after = FakeMember(worker("d-0", conductor_pb2.ROLE_DECODE), 2, {TierKind.DEVICE: KEYS[:3]})
    async with serving(settings) as server:
        await after.start(server.address)
        await until(lambda: server.statistics().indexed_blocks == 3)
        assert server.statistics().members == 1
    await after.stop()


async def test_who_is_gone_is_forgotten(tmp_path: Path) -> None:
    settings = config(tmp_path, member_ttl_ms=300)
    member = FakeMember(worker("d-0", conductor_pb2.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS})
    async with serving(settings) as server:
        await member.start(server.address)
        await until(lambda: server.statistics().indexed_blocks == 10)
    await member.kill()
    async with serving(settings) as server:
        assert server.statistics().members == 1
        await until(lambda: server.statistics().members == 0)
        assert server.statistics().indexed_blocks == 0


def broken_files(good: bytes) -> Iterator[bytes]:
    yield b""
    yield b"something else altogether"
    yield good[: len(good) // 2]
    yield good[:-1]
    yield MAGIC
    for place in (3, len(MAGIC) + 2, len(good) // 2, len(good) - 1):
        yield good[:place] + bytes([good[place] ^ 0x40]) + good[place + 1 :]


async def test_a_file_that_is_none_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(tmp_path).model_copy(update={"snapshot_every_ms": 60_000})
    assert settings.snapshot is not None
    member = FakeMember(worker("d-0", conductor_pb2.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS})
    async with serving(settings) as server:
        await member.start(server.address)
        await until(lambda: server.statistics().indexed_blocks == 10)
    await member.kill()
    good = settings.snapshot.read_bytes()
    for content in broken_files(good):
        settings.snapshot.write_bytes(content)
        caplog.clear()
        async with serving(settings) as server:
            assert server.statistics().members == 0
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert "starts without what it knew" in warnings[0].message
        settings.snapshot.write_bytes(good)


async def test_a_file_that_cannot_be_written_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    async with serving(config(tmp_path)):
        await until(lambda: "was not written" in caplog.text)
        await asyncio.sleep(0.2)
    assert caplog.text.count("was not written") == 1


def test_a_file_is_whole_or_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    end = snapshot_pb2.SnapshotEnd(complete=True)
    write_file(path, [frame(end)])
    (packed,) = read_file(path)
    assert bytes(packed) == end.SerializeToString()

    class Huge(bytes):
        def __len__(self) -> int:
            return BYTES_MAX

    with pytest.raises(ResourceExhaustedError, match="at most"):
        write_file(path, [Huge()])
    with pytest.raises(TypeError):
        write_file(path, [frame(end), 3])  # type: ignore[list-item]
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]
    assert bytes(read_file(path)[0]) == end.SerializeToString()
    with pytest.raises(ProtocolError):
        read_snapshot(path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises((ChecksumError, ProtocolError)):
        read_file(path)


class Plain:
    """A conductor without sockets."""

    def __init__(self) -> None:
        self.conductor = Conductor(make_policy("joint"), ManualClock(100.0))
        self.feeds: dict[str, IndexFeed] = {}
        self.truth: dict[tuple[str, TierKind], set[int]] = {}

    def join(self, name: str, epoch: int = 1) -> None:
        member = Member(MemberId(name), Role.DECODE, f"{name}:1", NodeId(name), model=MODEL)
        feed = self.conductor.register(member, epoch)
        assert feed is not None
        self.feeds[name] = feed

    def stored(self, name: str, tier: TierKind, numbers: list[int]) -> None:
        self.feeds[name].stored(tier, BlockKeys(FINGERPRINT, hashes(*numbers)))
        self.truth.setdefault((name, tier), set()).update(numbers)

    def removed(self, name: str, tier: TierKind, numbers: list[int]) -> None:
        self.feeds[name].removed(tier, BlockKeys(FINGERPRINT, hashes(*numbers)))
        self.truth.setdefault((name, tier), set()).difference_update(numbers)

    def held(self) -> dict[tuple[str, TierKind], set[int]]:
        members = self.conductor._members
        index = self.conductor._index
        return {
            (record.member.member_id, tier): set(index.held(record.slot, tier))
            for record in members
            for tier in TIERS
            if index.held(record.slot, tier)
        }


def restored(plain: Plain, runs: list[KeptRun]) -> Plain:
    """As a file would have it."""
    layouts = {name: feed.layouts for name, feed in plain.feeds.items() if feed.layouts is not None}
    positions = {MemberId(name): Position(1, 1, layout) for name, layout in layouts.items()}
    header = header_to(plain.conductor.keep(), positions)
    header = snapshot_pb2.SnapshotHeader.FromString(header.SerializeToString())
    blocks = snapshot_pb2.SnapshotBlocks.FromString(blocks_to(runs).SerializeToString())
    found = positions_from(header, ())
    after = Plain()
    feeds = after.conductor.restore(
        state_from(header), {n: p.layouts for n, p in found.items()}, runs_from(blocks)
    )
    after.feeds = {str(name): feed for name, feed in feeds.items()}
    after.truth = {key: set(numbers) for key, numbers in plain.truth.items()}
    return after


def random_events(plain: Plain, rng: random.Random, names: list[str], count: int) -> list[tuple]:
    events = []
    for _ in range(count):
        name, tier = rng.choice(names), rng.choice(TIERS)
        first = rng.randrange(1, 400)
        numbers = list(range(first, first + rng.randrange(1, 60)))
        verb = "stored" if rng.random() < 0.6 else "removed"
        getattr(plain, verb)(name, tier, numbers)
        events.append((verb, name, tier, numbers))
    return events


@pytest.mark.parametrize("seed", range(20))
def test_blocks_come_back_though_events_came_between_the_slices(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.conductor.kept._SLICE_RUNS", 2)
    rng = random.Random(seed)
    names = [f"d-{number}" for number in range(4)]
    plain = Plain()
    for name in names:
        plain.join(name)
    random_events(plain, rng, names, 40)
    later, runs = [], []
    for slice_ in plain.conductor.kept_runs():
        runs += slice_
        later += random_events(plain, rng, names, rng.randrange(3))
    after = restored(plain, runs)
    for verb, name, tier, numbers in later:  # replayed
        getattr(after, verb)(name, tier, numbers)
    truth = {key: numbers for key, numbers in plain.truth.items() if numbers}
    assert plain.held() == truth
    assert after.held() == truth
    for name in names:
        for tier in TIERS:
            after.removed(name, tier, list(range(1, 500)))
    assert after.conductor.statistics().indexed_blocks == 0


def test_what_was_learned_comes_back() -> None:
    plain = Plain()
    for name in ("d-0", "d-1"):
        plain.join(name)
    keys = RoutingKeys.of_hashes(hashes(*range(1, 11)))
    for number in range(30):
        name = RequestId(f"r{number}")
        plain.conductor.route(Request(name, "tiny", keys, 170, 64, tenant=f"t{number % 3}"))
        plain.conductor.complete(
            Outcome(name, 0.9, 0.5 + number / 100, 170, 0.05, output_tokens=20 + number)
        )
    plain.conductor.heartbeat(MemberId("d-0"), 1, Load(3, 2, 100, 7, 9))
    after = restored(plain, [])
    assert after.conductor.keep() == plain.conductor.keep()
    terms = []
    for conductor in (plain.conductor, after.conductor):
        placement = conductor.route(Request(RequestId("x"), "tiny", keys, 170, 64))
        terms.append(placement.chosen.prefill_s)
    assert terms[0] == pytest.approx(terms[1])


def bad_headers() -> Iterator[snapshot_pb2.SnapshotHeader]:
    plain = Plain()
    plain.join("d-0")
    good = header_to(plain.conductor.keep(), {MemberId("d-0"): Position(1, 1, {})})
    for spoil in (
        lambda h: setattr(h, "version", 2),
        lambda h: h.members.add().CopyFrom(h.members[0]),
        lambda h: setattr(h.members[0].member, "role", 9),
        lambda h: h.charged.update({"t": float("nan")}),
        lambda h: h.answer_tokens.update({"t": -1.0}),
        lambda h: setattr(h.fleets[0].learned[0], "kind", "MAGIC"),
        lambda h: h.fleets[0].learned[0].coefficients.append(1.0),
        lambda h: h.fleets[0].learned[0].certainty.__setitem__(0, float("inf")),
        lambda h: h.fleets[0].learned[0].coefficients.__setitem__(0, -1.0),
        lambda h: h.fleets[0].learned[0].certainty.__setitem__(0, 0.0),
        lambda h: h.members[0].position.layouts.update({9: b"l" * 16}),
        lambda h: h.members[0].position.layouts.update({1: b"short"}),
    ):
        bad = snapshot_pb2.SnapshotHeader.FromString(good.SerializeToString())
        spoil(bad)
        yield bad


@pytest.mark.parametrize("header", list(bad_headers()))
def test_what_cannot_be_is_refused(header: snapshot_pb2.SnapshotHeader) -> None:
    with pytest.raises(KVStoreError):
        Plain().conductor.restore(
            state_from(header),
            {n: p.layouts for n, p in positions_from(header, ()).items()},
            (),
        )


@pytest.mark.parametrize(
    "run",
    [
        {"keys": b"12345678", "ends": [], "held": []},
        {"keys": b"1234567", "ends": [1], "held": [0]},
        {"keys": b"12345678", "ends": [2], "held": [0]},
        {"keys": b"12345678" * 2, "ends": [2, 2], "held": [0, 0]},
        {"keys": b"12345678" * 2, "ends": [1, 2], "held": [0]},
        {"keys": b"12345678", "ends": [1], "held": [1]},
    ],
)
def test_runs_that_cannot_be_are_refused(run: dict[str, object]) -> None:
    message = snapshot_pb2.SnapshotBlocks(
        holders=[snapshot_pb2.Places(places=[1])],
        runs=[snapshot_pb2.SnapshotRun(**run)],  # type: ignore[arg-type]
    )
    with pytest.raises(KVStoreError):
        list(runs_from(message))
    with pytest.raises(KVStoreError):
        list(runs_from(snapshot_pb2.SnapshotBlocks(holders=[snapshot_pb2.Places(places=[4])])))


def test_a_member_with_blocks_of_two_layouts_is_learned_anew() -> None:
    plain = Plain()
    plain.join("d-0")
    plain.stored("d-0", TierKind.HOST, [1, 2])
    plain.feeds["d-0"].stored(
        TierKind.HOST, BlockKeys(LayoutFingerprint(b"g" * 16), hashes(1, 2, 3))
    )
    assert plain.feeds["d-0"].layouts is None
    runs = [run for slice_ in plain.conductor.kept_runs() for run in slice_]
    assert restored(plain, runs).held() == {}
