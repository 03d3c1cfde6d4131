"""Requests of a simulation: a trace, with its hash ids turned into blocks of the instances' size.

trace      512 tokens │ 512 tokens │ 300
blocks     64 x 8     │ 64 x 8     │ 64 x 4, and 44 tokens that fill no block
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice

import numpy as np

from cluster.demo.trace import TRACE_BLOCK_TOKENS, TraceRequest
from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BLOCK_HASH_BYTES, BlockHash, RoutingKey, pack_hashes

_MIX = 0x9E3779B97F4A7C15
_KEY_MASK = (1 << 64) - 1
_PROMPT, _OUTPUT = b"\0", b"\1"
_HOT_ID_BASE = 1 << 40


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request as it will arrive."""

    number: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[BlockHash]
    """Full blocks of the prompt, in prefix order."""

    @property
    def routing_keys(self) -> list[RoutingKey]:
        keys: list[RoutingKey] = np.frombuffer(pack_hashes(self.blocks), "<u8")[::4].tolist()
        return keys


def expand(
    trace: Iterable[TraceRequest], *, block_size_tokens: int, speedup: float
) -> list[SimRequest]:
    """`trace` in order of arrival, `speedup` times faster. An answer has at least one token.

    Raises ConfigurationError: a speedup or block size that cannot be used, an empty trace, or one
    with an empty prompt.
    """
    if not 0 < speedup < float("inf"):
        raise ConfigurationError(f"speedup {speedup}: a number > 0, e.g. 4")
    if block_size_tokens < 1 or TRACE_BLOCK_TOKENS % block_size_tokens:
        raise ConfigurationError(
            f"block size {block_size_tokens}: a divisor of {TRACE_BLOCK_TOKENS}, the tokens that a"
            " hash id of the trace stands for"
        )
    blocks_of = _Blocks(TRACE_BLOCK_TOKENS // block_size_tokens)
    requests = []
    for number, entry in enumerate(sorted(trace, key=lambda request: request.timestamp_ms)):
        if not entry.input_length:
            raise ConfigurationError(f"request {number + 1} of the trace: input_length is 0")
        full_blocks = entry.input_length // block_size_tokens
        requests.append(
            SimRequest(
                number=number,
                arrival_s=entry.timestamp_ms / 1000 / speedup,
                prompt_tokens=entry.input_length,
                output_tokens=max(1, entry.output_length),
                blocks=list(islice(blocks_of(entry.hash_ids), full_blocks)),
            )
        )
    if not requests:
        raise ConfigurationError("the trace has no request")
    return requests


def output_blocks(number: int, count: int) -> list[BlockHash]:
    """Names of `count` blocks that hold generated tokens of request `number`: nobody else's."""
    return [_hash(number << 20 | i, _OUTPUT) for i in range(count)]


def without_reuse(trace: Iterable[TraceRequest]) -> list[TraceRequest]:
    """The same requests, no two of which share a prefix."""
    fresh, start = [], 0
    for request in trace:
        ids = tuple(range(start, start + len(request.hash_ids)))
        start += len(ids)
        fresh.append(replace(request, hash_ids=ids))
    return fresh


def with_hot_prefix(
    trace: Iterable[TraceRequest], *, share: float, prefix_blocks: int
) -> list[TraceRequest]:
    """The same requests, of which `share` begin with one prefix and have nothing else in common.

    Every request is as long as it was: of one that is shorter, the prefix is cut.
    """
    hot = []
    for number, request in enumerate(without_reuse(trace)):
        if int((number + 1) * share) > int(number * share):
            # The last block stays its own: it is what the user wrote.
            common = min(prefix_blocks, len(request.hash_ids) - 1)
            ids = (*range(_HOT_ID_BASE, _HOT_ID_BASE + common), *request.hash_ids[common:])
            request = replace(request, hash_ids=ids)
        hot.append(request)
    return hot


class _Blocks:
    """Hashes of the blocks that a hash id stands for; requests share the objects."""

    def __init__(self, per_id: int) -> None:
        self._per_id = per_id
        self._of = lru_cache(maxsize=None)(self._make)

    def __call__(self, hash_ids: Iterable[int]) -> Iterable[BlockHash]:
        return chain.from_iterable(map(self._of, hash_ids))

    def _make(self, hash_id: int) -> tuple[BlockHash, ...]:
        first = hash_id * self._per_id
        return tuple(_hash(first + i, _PROMPT) for i in range(self._per_id))


def _hash(number: int, kind: bytes) -> BlockHash:
    """As spread as a real one in its first 64 bits, and unlike every other (number, kind)."""
    tagged = number << 1 | kind[0]
    key = tagged * _MIX & _KEY_MASK
    return BlockHash(key.to_bytes(8, "little") + tagged.to_bytes(BLOCK_HASH_BYTES - 8, "little"))
