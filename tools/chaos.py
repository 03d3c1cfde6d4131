"""Runs the chaos suite: `python tools/chaos.py --runs 1000`. Exit status 1 if any run failed."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from kvstore.testing import chaos


def main(runs: int, first_seed: int) -> int:
    seeds = range(first_seed, first_seed + runs)
    killed: Counter[str] = Counter()
    num_failed = num_durable = num_orphaned = 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        for outcome in pool.map(chaos.run, seeds):
            killed[outcome.killed] += 1
            num_durable += outcome.durable_blocks
            num_orphaned += outcome.orphaned_blocks
            num_failed += bool(outcome.problems)
            for problem in outcome.problems:
                print(f"seed {outcome.seed}, {outcome.killed} killed: {problem}", flush=True)
    print(
        f"{runs} runs, {num_failed} failed; killed "
        + ", ".join(f"{name} {count} times" for name, count in killed.items())
        + f"; {num_durable} durable blocks looked for, {num_orphaned} kept back for stalled writers"
    )
    return 1 if num_failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(main(arguments.runs, arguments.first_seed))
