"""Token hit rate of every eviction policy on a Mooncake-format trace, one JSON object a figure.

python benchmarks/eviction.py TRACE.jsonl[.gz] [CAPACITY_TOKENS ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.demo.trace import read_trace
from kvstore.core.ports import Clock
from kvstore.eviction.adaptive import Adaptive
from kvstore.eviction.arc import ARC
from kvstore.eviction.base import EvictionPolicy
from kvstore.eviction.cost_aware import CostAware
from kvstore.eviction.learned import Learned
from kvstore.eviction.lfu import LFU
from kvstore.eviction.lru import LRU
from kvstore.eviction.prefix_closed import PrefixClosed
from kvstore.eviction.replay import Access, Belady, replay
from kvstore.eviction.s3fifo import S3FIFO
from kvstore.eviction.sieve import Sieve

BLOCK_TOKENS = 512
CAPACITIES_TOKENS = (3_000_000, 10_000_000)


def policies(accesses: Sequence[Access]) -> dict[str, Callable[[Clock], EvictionPolicy[int]]]:
    return {
        "lru": lambda clock: LRU(),
        "lfu": lambda clock: PrefixClosed(LFU()),
        "s3fifo": lambda clock: PrefixClosed(S3FIFO()),
        "sieve": lambda clock: PrefixClosed(Sieve()),
        "arc": lambda clock: PrefixClosed(ARC()),
        "cost_aware": lambda clock: PrefixClosed(CostAware(lambda position: 1 + position / 64)),
        "learned": Learned,
        "adaptive": lambda clock: Adaptive([Learned(clock), PrefixClosed(S3FIFO())]),
        "belady": lambda clock: PrefixClosed(Belady(accesses)),
    }


def main(trace: Path, capacities_tokens: Sequence[int]) -> None:
    accesses = [
        Access(r.timestamp_ms / 1000, r.input_length, r.hash_ids)
        for r in read_trace(trace, sys.maxsize)
    ]
    for name, make in policies(accesses).items():
        for tokens in capacities_tokens:
            rate = replay(
                accesses, make, capacity_blocks=tokens // BLOCK_TOKENS, block_tokens=BLOCK_TOKENS
            )
            figure = {"case": f"{name}_{tokens}", "value": round(rate.ratio, 4)}
            sys.stdout.write(json.dumps(figure) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(c) for c in sys.argv[2:]] or CAPACITIES_TOKENS)
