"""Token hit rate of every eviction policy on a Mooncake-format trace, one JSON object a figure.

python benchmarks/eviction.py TRACE.jsonl[.gz] [CAPACITY_TOKENS ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.demo.trace import read_trace
from kvstore.eviction.prefix_closed import PrefixClosed
from kvstore.eviction.registry import POLICIES
from kvstore.eviction.replay import Access, Belady, replay

BLOCK_TOKENS = 512
CAPACITIES_TOKENS = (3_000_000, 10_000_000)


def main(trace: Path, capacities_tokens: Sequence[int]) -> None:
    accesses = [
        Access(r.timestamp_ms / 1000, r.input_length, r.hash_ids)
        for r in read_trace(trace, sys.maxsize)
    ]
    bound = {"belady": lambda clock: PrefixClosed(Belady(accesses))}
    for name, make in {**POLICIES, **bound}.items():
        for tokens in capacities_tokens:
            rate = replay(
                accesses, make, capacity_blocks=tokens // BLOCK_TOKENS, block_tokens=BLOCK_TOKENS
            )
            figure = {"case": f"{name}_{tokens}", "value": round(rate.ratio, 4)}
            sys.stdout.write(json.dumps(figure) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(c) for c in sys.argv[2:]] or CAPACITIES_TOKENS)
