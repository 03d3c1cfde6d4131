"""`kvstore bench engine`: the time between two tokens of running sequences while a long prompt
arrives, where prefill has a worker of its own, and where one worker does both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from cluster.bench.case import BenchOptions, Case
from cluster.bench.engine_setup import (
    FULL,
    EngineSize,
    Prompts,
    model_folder,
    vocab_size,
    worker_config,
)
from cluster.bench.engine_streams import Streams
from cluster.bench.engine_turns import Turns, percentile
from cluster.bench.engine_worker import WorkerClient, WorkerProcess, spawned_worker
from cluster.bench.spawned_node import spawned_node
from kvstore.core.errors import KVStoreError

SPLIT, COLOCATED = "itl_p99_under_prefill", "itl_p99_colocated"
RUNNING = 4
_SPLIT_THREADS = 1
_COLOCATED_THREADS = 2
_HOST_BYTES = 1 << 30
Arrival = Callable[[list[int]], Awaitable[None]]
"""Has a prompt answered: returns when its second token is there."""


def engine_itl(options: BenchOptions, size: EngineSize = FULL) -> Iterator[Case]:
    """Raises KVStoreError if the hand-off did not bring the prompt's blocks."""
    for name, stand in ((SPLIT, _split), (COLOCATED, _colocated)):
        if options.wants(name):
            with stand(options, size) as workers:
                yield asyncio.run(_measure(name, workers, size, options))


@dataclass(frozen=True, slots=True)
class _Workers:
    """The same one twice where it does both."""

    prefill: WorkerProcess
    decode: WorkerProcess


@contextmanager
def _split(options: BenchOptions, size: EngineSize) -> Iterator[_Workers]:
    """A node, a prefill worker and a decode worker with one thread each."""
    model = model_folder(options.folder, size.shape)
    prompt_blocks = size.blocks_of(size.longest_tokens)
    with ExitStack() as stack:
        node = stack.enter_context(spawned_node(options.folder, "itl-node", host=_HOST_BYTES))
        common = {"node": node, "threads": _SPLIT_THREADS}
        prefill = worker_config(model, prompt_blocks + 2, **common)
        decode = worker_config(model, _decode_blocks(size), **common)
        yield _Workers(
            stack.enter_context(spawned_worker("prefill", prefill)),
            stack.enter_context(spawned_worker("decode", decode)),
        )


@contextmanager
def _colocated(options: BenchOptions, size: EngineSize) -> Iterator[_Workers]:
    """One worker with the threads of both."""
    model = model_folder(options.folder, size.shape)
    config = worker_config(model, _decode_blocks(size), threads=_COLOCATED_THREADS)
    with spawned_worker("decode", config) as worker:
        yield _Workers(worker, worker)


async def _measure(name: str, workers: _Workers, size: EngineSize, options: BenchOptions) -> Case:
    prompts = Prompts(vocab_size(model_folder(options.folder, size.shape)))
    async with AsyncExitStack() as stack:
        decode = WorkerClient(workers.decode)
        stack.push_async_callback(decode.close)
        if workers.prefill is workers.decode:
            arrive = partial(_answer_here, decode)
        else:
            prefill = WorkerClient(workers.prefill)
            stack.push_async_callback(prefill.close)
            arrive = partial(_hand_off, prefill, decode)
        streams = Streams(decode, prompts.several(RUNNING, size.short_tokens), _room(size))
        stack.push_async_callback(streams.stop)
        return await _case(name, streams, arrive, prompts, size)


async def _case(
    name: str, streams: Streams, arrive: Arrival, prompts: Prompts, size: EngineSize
) -> Case:
    """Quiet, a prompt, quiet, a prompt, quiet: each prompt against the quiet on both sides."""
    arrivals = size.arrivals if name == SPLIT else 1
    await streams.gaps_of(size.short_tokens)  # the first ones are no steady state
    quiet = [await streams.gaps_of(size.quiet_tokens)]
    under: list[list[float]] = []
    for _ in range(arrivals):
        under.append(await streams.gaps_during(arrive(prompts.one(size.longest_tokens))))
        quiet.append(await streams.gaps_of(size.quiet_tokens))
    turns = Turns(
        {
            "under": [1e3 * percentile(gaps, 99) for gaps in under],
            "quiet": [1e3 * percentile([*before, *after], 99) for before, after in pairwise(quiet)],
        }
    )
    medians = [1e3 * percentile([g for gaps in some for g in gaps], 50) for some in (under, quiet)]
    note = (
        f"{RUNNING} running sequences, a prompt of {size.longest_tokens} tokens arrives; "
        f"{sum(map(len, under))} gaps under it; medians {medians[0]:.3g} and {medians[1]:.3g} ms; "
        + _PROCESSES[name]
    )
    goal = "ratio <= 1.3" if name == SPLIT else ""
    return turns.case(name, "ms", "under", "quiet", "without it", goal=goal, note=note)


_PROCESSES = {
    SPLIT: f"a prefill and a decode worker, {_SPLIT_THREADS} thread each",
    COLOCATED: f"one decode worker that computes the prompt too, {_COLOCATED_THREADS} threads",
}


async def _hand_off(prefill: WorkerClient, decode: WorkerClient, prompt: list[int]) -> None:
    """As the gateway does it."""
    first = await prefill.ask(prompt, 2)
    second = await decode.ask(prompt, 2, output=first.token_ids)
    if sum(second.hit_tokens.values()) < len(prompt) - 1:
        raise KVStoreError(f"bench engine: after the hand-off only {second.hit_tokens} were there")


async def _answer_here(worker: WorkerClient, prompt: list[int]) -> None:
    await worker.ask(prompt, 2)


def _room(size: EngineSize) -> int:
    """More tokens than a sequence gets to."""
    return size.shape.max_context_tokens - size.short_tokens


def _decode_blocks(size: EngineSize) -> int:
    return RUNNING * size.blocks_of(size.shape.max_context_tokens) // 2 + 2 * size.blocks_of(
        size.longest_tokens
    )
