"""Shared memory of one node, mapped by every worker on its host."""

from __future__ import annotations

import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Self

from kvstore.core.errors import ConfigurationError, InvalidArgumentError
from kvstore.tiers.host.arena_file import create_arena_file
from kvstore.tiers.host.arena_header import TABLE_OFFSET, ArenaHeader, decode_arena_header
from kvstore.tiers.memory import ALIGNMENT


class Arena:
    """One shared-memory file, mapped. All offsets are file offsets.

    `Arena(folder, capacity_bytes)` makes one, ready within milliseconds whatever its size, for
    memory is committed as it is touched; `Arena.attach(path)` maps the arena of another process.

    Ownership: the maker unlinks the file on `close`; whoever has mapped it keeps reading the memory
    it had. A maker that was killed leaves its file to the next maker of an arena in that folder,
    which removes it. Threads: any. Who may write where, and when, is the business of the tier that
    allocates from it.

    Generations fence readers. Each 4 KiB unit has a counter; the owner raises that of a slot's
    first unit when the slot's life ends, before its memory gets another use. A reader that finds
    the generation unchanged *after* copying has copied the right bytes: each counter is one aligned
    8-byte word, so that it is never seen half-written, and x86 shows stores, and does loads, in
    program order. (Elsewhere the checksum of the copy is what remains.) An old client cannot match
    by accident: a new arena is a new file with a random generation base.
    """

    path: Path

    def __init__(self, folder: Path, capacity_bytes: int) -> None:
        """Raises ConfigurationError: folder not writable, or arena larger than memory or free
        space."""
        if capacity_bytes < ALIGNMENT:
            raise ConfigurationError(
                f"arena: at least {ALIGNMENT} bytes are needed, got {capacity_bytes}"
            )
        header = ArenaHeader(capacity_bytes // ALIGNMENT * ALIGNMENT, secrets.randbits(62))
        file = create_arena_file(Path(folder), header.file_bytes)
        self._map(file.path, file.descriptor, header, owned=True)
        self._memory[: len(header.encode())] = header.encode()

    @classmethod
    def attach(cls, path: Path | str) -> Self:
        """Map an existing arena. Raises ConfigurationError if it is not there or of another
        version."""
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(
                f"arena: cannot open {path}: {error.strerror}; is the node on this host, running, "
                "and of the same user?"
            ) from error
        try:
            header = decode_arena_header(os.pread(descriptor, 64, 0), os.fstat(descriptor).st_size)
        except ConfigurationError:
            os.close(descriptor)
            raise
        arena = cls.__new__(cls)
        arena._map(path, descriptor, header, owned=False)
        return arena

    def _map(self, path: Path, descriptor: int, header: ArenaHeader, *, owned: bool) -> None:
        try:
            self._mapping = mmap.mmap(descriptor, header.file_bytes)
        except OSError as error:
            os.close(descriptor)
            if owned:
                path.unlink()
            raise ConfigurationError(
                f"arena: cannot map {header.file_bytes} bytes: {error.strerror}; make the host "
                "tier smaller or raise the limit of address space"
            ) from error
        self.path = path
        self._descriptor = descriptor
        self._header = header
        self._owned = owned
        self._closed = False
        self._memory = memoryview(self._mapping)
        table = self._memory[TABLE_OFFSET : TABLE_OFFSET + 8 * header.units]
        self._counters = table.cast("Q")

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the data area."""
        return self._header.capacity_bytes

    @property
    def data_offset(self) -> int:
        """Where the data area begins; a multiple of 2 MiB."""
        return self._header.data_offset

    @property
    def file_bytes(self) -> int:
        return self._header.file_bytes

    def view(self, offset: int, length_bytes: int) -> memoryview:
        """Writable bytes of the data area, not copied. Raises InvalidArgumentError outside of
        it."""
        if length_bytes < 0 or not self.data_offset <= offset <= self.file_bytes - length_bytes:
            raise InvalidArgumentError(
                f"arena: [{offset}, {offset + length_bytes}) is outside of its data, "
                f"[{self.data_offset}, {self.file_bytes})"
            )
        return self._memory[offset : offset + length_bytes]

    def generation(self, offset: int) -> int:
        """Of the unit that `offset` lies in."""
        return self._header.generation_base + self._counters[self._unit(offset)]

    def bump_generation(self, offset: int) -> None:
        """End the life of the slot at `offset`. For the owner alone, one thread at a time."""
        self._counters[self._unit(offset)] += 1

    def _unit(self, offset: int) -> int:
        if not self.data_offset <= offset < self.file_bytes:
            raise InvalidArgumentError(f"arena: offset {offset} is outside of its data")
        return (offset - self.data_offset) // ALIGNMENT

    def close(self) -> None:
        """Idempotent. Memory goes when the last view of it does, in this process and in others."""
        if self._closed:
            return
        self._closed = True
        if self._owned:
            self.path.unlink(missing_ok=True)
        self._counters.release()
        with suppress(BufferError):  # views are still out: they keep the mapping until they go
            self._memory.release()
            self._mapping.close()
        os.close(self._descriptor)

    def __repr__(self) -> str:
        return f"Arena({self.path}, {self.capacity_bytes} bytes)"
