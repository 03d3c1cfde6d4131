"""Shared memory of one node, mapped by every worker on its host."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from kvstore.core.errors import ConfigurationError, InvalidArgumentError
from kvstore.tiers.host.arena_file import create_arena_file, page_bytes
from kvstore.tiers.host.arena_header import TABLE_OFFSET, ArenaHeader, decode_arena_header
from kvstore.tiers.host.pinning import PinnedRegions, cuda_runtime
from kvstore.tiers.host.prefault import populate_at
from kvstore.tiers.memory import ALIGNMENT, address_of


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

    A second table says how many layers of a slot that is being written are there already. Its
    writer raises it after the bytes: x86 shows stores in program order, so that who sees the
    watermark sees the layers below it (elsewhere the checksum of the whole block remains). It is 0
    again when the slot's next life begins.

    A process that uses CUDA when it maps an arena pins what it views of it.
    """

    path: Path

    def __init__(self, folder: Path, capacity_bytes: int) -> None:
        """Raises ConfigurationError: folder not writable, or arena larger than memory or free
        space."""
        granule = page_bytes(Path(folder))
        if capacity_bytes < granule:
            raise ConfigurationError(
                f"arena: at least {granule} bytes are needed, got {capacity_bytes}"
            )
        header = ArenaHeader(capacity_bytes // granule * granule, secrets.randbits(62))
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
        self.capacity_bytes = header.capacity_bytes
        """Bytes of the data area."""
        self.data_offset = header.data_offset
        """Where the data area begins; a multiple of 2 MiB."""
        self.file_bytes = header.file_bytes
        self._owned = owned
        self._closed = False
        self._memory = memoryview(self._mapping)
        table = self._memory[TABLE_OFFSET : TABLE_OFFSET + 8 * header.units]
        self._counters = table.cast("Q")
        layers = self._memory[header.layers_offset : header.layers_offset + 4 * header.units]
        self._layers_ready = layers.cast("I")
        self.populate = populate_at(address_of(self._memory) + header.data_offset)
        """Have the kernel supply memory at an offset into the data; see `prefault`. Not after
        `close`."""
        runtime = cuda_runtime()
        self._pinned = (
            PinnedRegions(runtime, address_of(self._memory), header.file_bytes) if runtime else None
        )
        with suppress(OSError, AttributeError):  # the kernel may have none for shared memory
            self._mapping.madvise(mmap.MADV_HUGEPAGE, header.data_offset, header.capacity_bytes)

    def view(self, offset: int, length_bytes: int) -> memoryview:
        """Writable bytes of the data area, not copied. Raises InvalidArgumentError outside of
        it."""
        if length_bytes < 0 or not self.data_offset <= offset <= self.file_bytes - length_bytes:
            raise InvalidArgumentError(
                f"arena: [{offset}, {offset + length_bytes}) is outside of its data, "
                f"[{self.data_offset}, {self.file_bytes})"
            )
        if self._pinned is not None:
            self._pinned.use(offset, length_bytes)
        return self._memory[offset : offset + length_bytes]

    def generation(self, offset: int) -> int:
        """Of the unit that `offset` lies in."""
        return self._header.generation_base + self._counters[self._unit(offset)]

    def generations(self, offsets: Sequence[int]) -> list[int]:
        """The same of many at once."""
        first, end = self.data_offset, self.file_bytes
        if offsets and not (first <= min(offsets) and max(offsets) < end):
            raise InvalidArgumentError("arena: an offset is outside of its data")
        base, counters = self._header.generation_base, self._counters
        return [base + counters[(offset - first) // ALIGNMENT] for offset in offsets]

    def bump_generation(self, offset: int) -> None:
        """End the life of the slot at `offset`. For the owner alone, one thread at a time."""
        unit = self._unit(offset)
        self._counters[unit] += 1
        self._layers_ready[unit] = 0

    def layers_ready(self, offset: int) -> int:
        """Of the slot at `offset`: leading layers that may be read before it is committed."""
        return self._layers_ready[self._unit(offset)]

    def set_layers_ready(self, offset: int, layers: int) -> None:
        """For the slot's one writer, after the bytes of those layers are written."""
        self._layers_ready[self._unit(offset)] = layers

    def _unit(self, offset: int) -> int:
        if not self.data_offset <= offset < self.file_bytes:
            raise InvalidArgumentError(f"arena: offset {offset} is outside of its data")
        return (offset - self.data_offset) // ALIGNMENT

    def close(self) -> None:
        """Idempotent. Memory goes when the last view of it does, in this process and in others."""
        if self._closed:
            return
        self._closed = True
        if self._pinned is not None:
            self._pinned.close()
        if self._owned:
            self.path.unlink(missing_ok=True)
        self._counters.release()
        self._layers_ready.release()
        with suppress(BufferError):  # views are still out: they keep the mapping until they go
            self._memory.release()
            self._mapping.close()
        os.close(self._descriptor)

    def __repr__(self) -> str:
        return f"Arena({self.path}, {self.capacity_bytes} bytes)"
