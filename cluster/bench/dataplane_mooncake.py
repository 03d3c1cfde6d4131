"""`kvstore bench dataplane --peer mooncake=PYTHON`: the same work by us and by Mooncake Store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from cluster.bench.alternate import seconds_of
from cluster.bench.case import BenchOptions, Case
from cluster.bench.ceilings import BLOCK_BYTES, random_blocks, touched_blocks
from cluster.bench.dataplane_local import DEADLINE_S, LocalClient, local_client
from cluster.bench.mooncake_peer import MooncakePeer, mooncake_peer
from kvstore.client.work import THREADS

PEER = "mooncake"
ROUNDS = 5
AGAINST = "Mooncake Store over TCP on loopback"
LARGE_BATCH, LARGE_BATCHES = 16, 4
SMALL_BYTES, SMALL_BATCH, SMALL_BATCHES = 4096, 64, 32
LATENCY_TURNS = 500


def dataplane_mooncake(options: BenchOptions) -> Iterator[Case]:
    """Nothing without that peer. Raises ConfigurationError if one of the two does not start."""
    if PEER not in options.peers:
        return
    with mooncake_peer(options.peers[PEER]) as peer:
        with local_client(options) as local:
            yield from _large_same_host(local, peer)
            yield from _small(local, peer)
        with local_client(options, shared_memory=False) as remote:
            yield _large_remote(remote, peer)


def _large_same_host(local: LocalClient, peer: MooncakePeer) -> Iterator[Case]:
    ours = Blocks(local, BLOCK_BYTES, LARGE_BATCH, LARGE_BATCHES)
    peer.command("prepare", size=BLOCK_BYTES, batch=LARGE_BATCH)
    put, get = _alternate(ours, peer, LARGE_BATCHES)
    gigabytes = BLOCK_BYTES * LARGE_BATCH * LARGE_BATCHES / 1e9
    note = (
        f"batches of {LARGE_BATCH}; ours reads shared memory, fenced by generation; copied by "
        f"{THREADS} threads"
    )
    yield _rate_case("mooncake_get_same_host_2mib", gigabytes, "GB/s", get, note)
    note = f"batches of {LARGE_BATCH}; ours computes checksums; copied by {THREADS} threads"
    yield _rate_case("mooncake_put_same_host_2mib", gigabytes, "GB/s", put, note)


def _large_remote(remote: LocalClient, peer: MooncakePeer) -> Case:
    ours = Blocks(remote, BLOCK_BYTES, LARGE_BATCH, LARGE_BATCHES)
    peer.command("prepare", size=BLOCK_BYTES, batch=LARGE_BATCH)
    _, get = _alternate(ours, peer, LARGE_BATCHES)
    gigabytes = BLOCK_BYTES * LARGE_BATCH * LARGE_BATCHES / 1e9
    note = f"batches of {LARGE_BATCH}; shared memory off, bytes over TCP, checksums verified"
    return _rate_case("mooncake_get_remote_2mib", gigabytes, "GB/s", get, note)


def _small(local: LocalClient, peer: MooncakePeer) -> Iterator[Case]:
    ours = Blocks(local, SMALL_BYTES, SMALL_BATCH, SMALL_BATCHES)
    peer.command("prepare", size=SMALL_BYTES, batch=SMALL_BATCH)
    _, get = _alternate(ours, peer, SMALL_BATCHES)
    blocks = SMALL_BATCH * SMALL_BATCHES
    note = f"get of 4 KiB blocks in batches of {SMALL_BATCH}"
    yield _rate_case("mooncake_small_blocks_per_s", blocks, "blocks/s", get, note)
    yield from _latency(ours, peer)


def _latency(ours: Blocks, peer: MooncakePeer) -> Iterator[Case]:
    """Median of the gets of single blocks, in turns: ours of blocks that this client has not read
    before, ours of those again, and Mooncake's."""
    first, again, theirs = [], [], []
    for _ in range(3):
        ours.put_s()
        first.append(ours.latency_s())
        again.append(ours.latency_s())
        theirs.append(peer.command("latency", turns=LATENCY_TURNS))
    note = "get of one 4 KiB block, that this client read before: no word with the node"
    yield Case("mooncake_get_4k_p50", min(again) * 1e6, "us", min(theirs) * 1e6, AGAINST, note)
    note = "get of one 4 KiB block, that this client never read before: one round trip"
    yield Case(
        "mooncake_first_get_4k_p50", min(first) * 1e6, "us", min(theirs) * 1e6, AGAINST, note
    )


class Best:
    """The shortest time of each of the two."""

    def __init__(self) -> None:
        self.our_s = self.their_s = float("inf")

    def add(self, our_s: float, their_s: float) -> None:
        self.our_s, self.their_s = min(self.our_s, our_s), min(self.their_s, their_s)


def _alternate(ours: Blocks, peer: MooncakePeer, batches: int) -> tuple[Best, Best]:
    """Put and get by both in turns; the first round warms up."""
    put, get = Best(), Best()
    for number in range(ROUNDS + 1):
        our_put_s, their_put_s = ours.put_s(), peer.command("put", batches=batches)
        our_get_s, their_get_s = ours.get_s(), peer.command("get")
        if number:
            put.add(our_put_s, their_put_s)
            get.add(our_get_s, their_get_s)
        peer.command("clear")
    peer.command("put", batches=batches)
    return put, get


def _rate_case(name: str, amount: float, unit: str, best: Best, note: str) -> Case:
    return Case(name, amount / best.our_s, unit, amount / best.their_s, AGAINST, note)


class Blocks:
    """What `mooncake_driver.Peer` does, by our client."""

    def __init__(self, local: LocalClient, size: int, batch: int, batches: int) -> None:
        self._local = local
        self._data = random_blocks(batch, size)
        self._into = touched_blocks(batch, size)
        self._batch = batch
        self._batches = batches
        self._keys = [local.fresh_keys(batch) for _ in range(batches)]

    def put_s(self) -> float:
        self._keys = [self._local.fresh_keys(self._batch) for _ in range(self._batches)]

        async def put() -> None:
            for keys in self._keys:
                stored = await self._local.client.put(keys, self._data, deadline_s=DEADLINE_S)
                assert len(stored) == self._batch

        return seconds_of(self._local.run(put))

    def get_s(self) -> float:
        async def get() -> None:
            for keys in self._keys:
                assert not await self._local.client.get(keys, self._into, deadline_s=DEADLINE_S)

        elapsed_s = seconds_of(self._local.run(get))
        assert self._into == self._data
        return elapsed_s

    def latency_s(self) -> float:
        """Median of the gets of LATENCY_TURNS different blocks."""
        times: list[float] = []
        singles = [keys[i : i + 1] for keys in self._keys for i in range(self._batch)]

        async def get() -> None:
            for turn in range(LATENCY_TURNS):
                keys = singles[turn % len(singles)]
                started_s = time.perf_counter()
                misses = await self._local.client.get(keys, self._into[:1])
                times.append(time.perf_counter() - started_s)
                assert not misses

        self._local.run(get)()
        return median(times)
