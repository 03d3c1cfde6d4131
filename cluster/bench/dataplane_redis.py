"""`kvstore bench dataplane --peer redis=SERVER`: the same work by us and by Redis on one host."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.bench.case import BenchOptions, Case
from cluster.bench.ceilings import BLOCK_BYTES, random_blocks
from cluster.bench.dataplane_local import local_client
from cluster.bench.dataplane_mooncake import (
    LARGE_BATCH,
    LARGE_BATCHES,
    LATENCY_TURNS,
    ROUNDS,
    SMALL_BATCH,
    SMALL_BATCHES,
    SMALL_BYTES,
    Best,
    Blocks,
)
from cluster.bench.redis_peer import RedisPeer, redis_peer
from kvstore.client.work import THREADS

PEER = "redis"


def dataplane_redis(options: BenchOptions) -> Iterator[Case]:
    """Nothing without that peer. Raises ConfigurationError if one of the two does not start."""
    if PEER not in options.peers:
        return
    with redis_peer(options.peers[PEER], options.folder) as peer, local_client(options) as local:
        against = f"Redis by {peer.way}, values as bytes"
        ours = Blocks(local, BLOCK_BYTES, LARGE_BATCH, LARGE_BATCHES)
        peer.prepare(random_blocks(LARGE_BATCH, BLOCK_BYTES))
        put, get = _alternate(ours, peer, LARGE_BATCHES)
        gigabytes = BLOCK_BYTES * LARGE_BATCH * LARGE_BATCHES / 1e9
        note = (
            f"batches of {LARGE_BATCH}; ours into the caller's buffers by {THREADS} threads, "
            "theirs as new bytes"
        )
        yield _case("redis_get_same_host_2mib", gigabytes, "GB/s", get, against, note)
        note = f"batches of {LARGE_BATCH}; ours computes checksums; copied by {THREADS} threads"
        yield _case("redis_put_same_host_2mib", gigabytes, "GB/s", put, against, note)

        ours = Blocks(local, SMALL_BYTES, SMALL_BATCH, SMALL_BATCHES)
        peer.prepare(random_blocks(SMALL_BATCH, SMALL_BYTES))
        _, get = _alternate(ours, peer, SMALL_BATCHES)
        note = f"get of 4 KiB blocks in batches of {SMALL_BATCH}, never read before"
        amount = SMALL_BATCH * SMALL_BATCHES
        yield _case("redis_small_blocks_per_s", amount, "blocks/s", get, against, note)
        yield _latency(ours, peer, against)


def _alternate(ours: Blocks, peer: RedisPeer, batches: int) -> tuple[Best, Best]:
    """Put and get by both in turns; the first round warms up."""
    put, get = Best(), Best()
    for number in range(ROUNDS + 1):
        peer.clear()
        puts_s = ours.put_s(), peer.put_s(batches)
        gets_s = ours.get_s(), peer.get_s()
        if number:
            put.add(*puts_s)
            get.add(*gets_s)
    return put, get


def _latency(ours: Blocks, peer: RedisPeer, against: str) -> Case:
    """Median of the gets of single blocks that this client never read before, in turns."""
    best = Best()
    for _ in range(3):
        ours.put_s()
        best.add(ours.latency_s(), peer.latency_s(LATENCY_TURNS))
    note = "get of one 4 KiB block, that this client never read before: one round trip"
    return Case("redis_get_4k_p50", best.our_s * 1e6, "us", best.their_s * 1e6, against, note)


def _case(name: str, amount: float, unit: str, best: Best, against: str, note: str) -> Case:
    return Case(name, amount / best.our_s, unit, amount / best.their_s, against, note)
