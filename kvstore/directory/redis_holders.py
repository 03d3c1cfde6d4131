"""A reader's copy of who holds what number, and replicas by what a bucket says. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.errors import ProtocolError
from kvstore.core.ids import MemberId
from kvstore.directory.base import Replica
from kvstore.directory.redis_scripts import NUMBER_BYTES
from kvstore.tiers.base import TierKind


def field_of(publisher: MemberId, tier: TierKind) -> bytes:
    """Names a holder: the tier's digit, then the publisher."""
    return b"%d%b" % (tier, publisher.encode())


class Holders:
    """Valid for one version of the table. The same value gives the same object each time: few
    values say where many blocks are."""

    def __init__(self, version: bytes, table: Sequence[bytes]) -> None:
        """`table` alternates fields and numbers. Raises ProtocolError."""
        self.version = version
        try:
            self._by_number = {
                number: Replica(MemberId(field[1:].decode()), TierKind(int(field[:1])))
                for field, number in zip(table[::2], table[1::2], strict=True)
            }
        except ValueError as error:
            raise ProtocolError(
                "the directory in Redis has another form; give each version a namespace"
            ) from error
        self._decoded: dict[bytes, Sequence[Replica]] = {b"": ()}

    def decode(self, found: bytes) -> list[Sequence[Replica]]:
        """`found` is [length, numbers] of each key, as the LOCATE script tells."""
        located = []
        at, end = 0, len(found)
        while at < end:
            after = at + 1 + found[at]
            located.append(self._replicas(found[at + 1 : after]))
            at = after
        return located

    def _replicas(self, value: bytes) -> Sequence[Replica]:
        replicas = self._decoded.get(value)
        if replicas is None:
            numbers = [value[i : i + NUMBER_BYTES] for i in range(0, len(value), NUMBER_BYTES)]
            known = [self._by_number[n] for n in numbers if n in self._by_number]
            replicas = tuple(sorted(known, key=lambda r: (r.tier, r.publisher)))
            self._decoded[value] = replicas
        return replicas
