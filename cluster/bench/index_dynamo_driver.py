"""Dynamo's RadixTree beside our index: run by the Python that it is installed in, which knows
nothing of us.

Answers commands: one JSON object a line on stdin, one on stdout. All times are taken here, around
Dynamo's calls alone, and are CPU time of this process. Ends when stdin does.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

SEED = 1
CHAINS, BLOCKS, COPIES = 2000, 200, 4


class Peer:
    """The workload of `index_workload.Workload`, in Dynamo's form."""

    def __init__(self, tree_class: Any) -> None:
        self._tree_class = tree_class
        self._tree: Any = None
        self._chains: list[list[int]] = []
        self._events: list[tuple[int, bytes]] = []

    def prepare(self, workers: int) -> None:
        rng = random.Random(SEED)  # noqa: S311
        self._chains = [[rng.getrandbits(60) for _ in range(BLOCKS)] for _ in range(CHAINS)]
        self._events = [
            (worker, _stored(number, chain))
            for number, chain in enumerate(self._chains)
            for worker in rng.sample(range(workers), COPIES)
        ]

    def insert(self) -> float:
        """CPU seconds to take all events into a new tree."""
        self._tree = None
        tree = self._tree = self._tree_class()
        started_s = time.process_time()
        for worker, event in self._events:
            tree.apply_event(worker, event)
        # Whatever it does behind our back is done when it answers.
        found = tree.find_matches(self._chains[-1])
        elapsed_s = time.process_time() - started_s
        assert len(found.scores) == COPIES, "an insert failed"
        return elapsed_s

    def match(self, first: int, prompts: int) -> float:
        """CPU seconds to look up so many prompts, each once."""
        tree = self._tree
        chains = [self._chains[i % CHAINS] for i in range(first, first + prompts)]
        started_s = time.process_time()
        for chain in chains:
            found = tree.find_matches(chain)
        elapsed_s = time.process_time() - started_s
        assert len(found.scores) == COPIES, "a match failed"
        return elapsed_s


def _stored(number: int, hashes: list[int]) -> bytes:
    blocks = [{"block_hash": name, "tokens_hash": name} for name in hashes]
    stored = {"parent_hash": None, "start_position": None, "blocks": blocks}
    return json.dumps({"event_id": number, "data": {"stored": stored}}).encode()


def main() -> None:
    from dynamo._core import RadixTree  # type: ignore[import-not-found]

    peer = Peer(RadixTree)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        command = json.loads(line)
        result = getattr(peer, command.pop("verb"))(**command)
        print(json.dumps({"result": result}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
