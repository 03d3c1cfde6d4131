"""A file of checked messages: whole, or not at all.

```
 [8 bytes: what file this is] ([length: 4][CRC-32C: 4][message]) ...      little endian
```
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kvstore.core.checksum import checksum
from kvstore.core.errors import ChecksumError, ProtocolError, ResourceExhaustedError

M = TypeVar("M", bound=Message)

MAGIC = b"KVCSNAP\x01"
BYTES_MAX = 1 << 30
"""Of a file."""

_HEAD = Struct("<II")


def frame(message: Message) -> bytes:
    packed: bytes = message.SerializeToString()
    return _HEAD.pack(len(packed), checksum(packed)) + packed


def write_file(path: Path, frames: Sequence[bytes]) -> None:
    """In place of what is there, in one step: whoever reads finds the old file or the new one.

    Raises OSError, and ResourceExhaustedError for more than `BYTES_MAX`; then nothing has changed.
    """
    length_bytes = len(MAGIC) + sum(map(len, frames))
    if length_bytes > BYTES_MAX:
        raise ResourceExhaustedError(f"{path}: {length_bytes} bytes, at most {BYTES_MAX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC)
            file.writelines(frames)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def read_file(path: Path) -> list[memoryview]:
    """The messages, packed. Raises OSError, ProtocolError for another kind of file or half of one,
    ChecksumError."""
    if path.stat().st_size > BYTES_MAX:
        raise ProtocolError(f"{path}: larger than {BYTES_MAX} bytes")
    content = memoryview(path.read_bytes())
    if content[: len(MAGIC)] != MAGIC:
        raise ProtocolError(f"{path}: not a snapshot of this version")
    return list(_frames(content[len(MAGIC) :], path))


def _frames(content: memoryview, path: Path) -> Iterator[memoryview]:
    while content:
        if len(content) < _HEAD.size:
            raise ProtocolError(f"{path}: ends in the middle")
        length, expected = _HEAD.unpack(content[: _HEAD.size])
        packed = content[_HEAD.size : _HEAD.size + length]
        if len(packed) != length:
            raise ProtocolError(f"{path}: ends in the middle")
        if checksum(packed) != expected:
            raise ChecksumError(f"{path}: changed since it was written")
        yield packed
        content = content[_HEAD.size + length :]


def parse(message_type: type[M], packed: memoryview) -> M:
    try:
        message = message_type.FromString(bytes(packed))
    except DecodeError as error:
        raise ProtocolError(f"no {message_type.__name__}") from error
    return message
