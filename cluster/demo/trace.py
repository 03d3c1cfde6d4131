"""Reads request traces in the Mooncake format: one JSON object a line.

    {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, ...]}

A hash id stands for 512 tokens of the prompt together with everything before them; two requests
share a prefix as far as their hash ids agree.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeGuard

from kvstore.core.errors import ConfigurationError

TRACE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceRequest:
    timestamp_ms: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_trace(path: Path, limit: int) -> list[TraceRequest]:
    """The first `limit` requests of a `.jsonl` or `.jsonl.gz` file.

    Raises ConfigurationError that names the file, and the line where one is wrong.
    """
    try:
        with _open(path) as lines:
            return list(islice(parse_trace(lines, str(path)), limit))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{path}: cannot read the trace: {reason}") from error


def parse_trace(lines: Iterable[str], name: str) -> Iterator[TraceRequest]:
    """Requests of the lines that are not blank; `name` is what errors call the source."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _parse(line)
            except ValueError as error:
                raise ConfigurationError(f"{name}, line {number}: {error}") from error


def synthetic_trace(count: int, tokens: int = 6_000) -> list[TraceRequest]:
    """Stands in for a file: one common first block, then conversations of two turns each."""
    blocks = tokens // TRACE_BLOCK_TOKENS
    requests = []
    for number in range(count):
        conversation, turn = divmod(number, 2)
        own = range(1 + 2 * blocks * conversation, 1 + 2 * blocks * (conversation + 1))
        hash_ids = (0, *own[: blocks - 2 + 2 * turn])
        length = len(hash_ids) * TRACE_BLOCK_TOKENS - 100
        requests.append(TraceRequest(1_000 * number, length, 300 + 40 * turn, hash_ids))
    return requests


def _open(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8")


def _parse(line: str) -> TraceRequest:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with hash_ids, got {line.strip()[:40]}")
    hash_ids = fields.get("hash_ids")
    if not isinstance(hash_ids, list) or not all(_is_count(i) for i in hash_ids):
        raise ValueError("hash_ids must be a list of numbers >= 0")
    request = TraceRequest(
        timestamp_ms=_count(fields, "timestamp"),
        input_length=_count(fields, "input_length"),
        output_length=_count(fields, "output_length"),
        hash_ids=tuple(hash_ids),
    )
    if len(hash_ids) != -(-request.input_length // TRACE_BLOCK_TOKENS):
        raise ValueError(
            f"{len(hash_ids)} hash_ids for an input_length of {request.input_length}: "
            f"expected one for every {TRACE_BLOCK_TOKENS} tokens"
        )
    return request


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if not _is_count(value):
        raise ValueError(f"{name} must be a number >= 0, got {value!r}")
    return value


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
