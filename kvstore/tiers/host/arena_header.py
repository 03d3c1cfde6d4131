"""The shape of an arena file. Pure: bytes in, numbers out.

    ┌────────┬──────────────────┬──────────────────┬─────┬────────────────────────────┐
    │ header │ generation table │ layers_ready     │ gap │ data: capacity_bytes       │
    └────────┴──────────────────┴──────────────────┴─────┴────────────────────────────┘
    0       4096  8 bytes a unit    4 bytes a unit      data_offset (a multiple of 2 MiB)

The file is sparse: the tables of a 1 TiB arena span 3 GiB and take memory only where they are
written.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvstore.core.errors import ConfigurationError
from kvstore.tiers.memory import ALIGNMENT, round_up

MAGIC = b"KVARENA\x00"
VERSION = 2
TABLE_OFFSET = ALIGNMENT
_DATA_ALIGNMENT = 2 << 20
_FORMAT = struct.Struct("<8sIIQQ")


@dataclass(frozen=True, slots=True)
class ArenaHeader:
    """What a process must know to map an arena.

    A generation is `generation_base` plus the counter of the table. The base is drawn at random for
    each arena, so that a generation of one arena means nothing in another.
    """

    capacity_bytes: int
    generation_base: int

    @property
    def units(self) -> int:
        return self.capacity_bytes // ALIGNMENT

    @property
    def layers_offset(self) -> int:
        return TABLE_OFFSET + 8 * self.units

    @property
    def data_offset(self) -> int:
        return round_up(self.layers_offset + 4 * self.units, _DATA_ALIGNMENT)

    @property
    def file_bytes(self) -> int:
        return self.data_offset + self.capacity_bytes

    def encode(self) -> bytes:
        return _FORMAT.pack(MAGIC, VERSION, ALIGNMENT, self.capacity_bytes, self.generation_base)


def decode_arena_header(data: bytes, file_bytes: int) -> ArenaHeader:
    """Inverse of `encode`, for a file of `file_bytes`.

    Raises ConfigurationError for anything that this version did not write.
    """
    if len(data) < _FORMAT.size:
        raise ConfigurationError("arena: the file is too short to be an arena")
    magic, version, unit, capacity_bytes, generation_base = _FORMAT.unpack_from(data)
    if magic != MAGIC:
        raise ConfigurationError("arena: the file is no arena; check the path")
    if (version, unit) != (VERSION, ALIGNMENT):
        raise ConfigurationError(
            f"arena: made by version {version} of its format, this is version {VERSION}; "
            "run the same version of the node and of its clients"
        )
    header = ArenaHeader(capacity_bytes, generation_base)
    if capacity_bytes % ALIGNMENT or header.file_bytes != file_bytes:
        raise ConfigurationError(
            f"arena: the file has {file_bytes} bytes, its header says {header.file_bytes}"
        )
    return header
