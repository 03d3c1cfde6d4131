"""Tenants: whose blocks are whose.

A tenant is folded into the layout fingerprint of its keys where they enter the node. From there on
its blocks have keys that no other tenant can name, in the books, on disk, in events and in the
directory, at no cost a block:

    session of "acme"   (fingerprint, hash) ──fold──▶ (sha256(domain, "acme", fingerprint), hash)

Names are no secrets: on a node that asks for no tokens, whoever may open a session may name any
tenant.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from kvstore.core.encoding import encode_fields
from kvstore.core.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from kvstore.core.ids import FINGERPRINT_BYTES, BlockKeys, LayoutFingerprint

DEFAULT_TENANT = ""
ANY_TENANT = "*"
"""In `node.quotas`: every tenant that is not named there."""
MAX_TENANTS = 4_096
MAX_LAYOUTS = 1_024
"""Of one tenant."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_tenant(field: str, tenant: str) -> str:
    """The name, if it is one. Raises InvalidArgumentError."""
    if tenant != DEFAULT_TENANT and _NAME.fullmatch(tenant) is None:
        raise InvalidArgumentError(
            f"{field} must be 1 to 64 of the characters A-Z a-z 0-9 . _ - and begin with a letter "
            f"or digit, or empty for the default tenant; got {tenant[:80]!r}"
        )
    return tenant


def check_peer(tenant: str, *, peer: bool) -> None:
    """A peer's keys have their tenants folded in already: it has none of its own."""
    if peer and tenant != DEFAULT_TENANT:
        raise InvalidArgumentError(
            f"tenant must be empty for a peer, which reads the blocks of all; got {tenant!r}"
        )


def fold(tenant: str, layout: LayoutFingerprint) -> LayoutFingerprint:
    """The fingerprint under which a tenant's blocks of a layout are kept. The same on every node.

    The default tenant's is the layout's own.
    """
    if tenant == DEFAULT_TENANT:
        return layout
    fields = encode_fields("kvstore.tenant.v1", tenant, layout)
    return LayoutFingerprint(hashlib.sha256(fields).digest()[:FINGERPRINT_BYTES])


@dataclass(frozen=True, slots=True)
class TenantUsage:
    tenant: str
    host_bytes: int
    quota_bytes: int | None
    over_quota: int
    """Blocks that were refused for it."""


class Tenants:
    """The tenants that this node has met, their layouts and their quotas.

    Owned by the node's event loop. Bounds: MAX_TENANTS, and MAX_LAYOUTS for each; beyond, those
    without a byte in the host tier are forgotten, oldest first (`Clear` does not find their blocks
    on disk then, until they are used again), and if there are none, the new one is refused
    (ResourceExhaustedError).
    """

    def __init__(
        self, quotas: Mapping[str, int], bytes_of: Callable[[LayoutFingerprint], int]
    ) -> None:
        """`bytes_of` tells what the host tier holds of a layout."""
        self._quotas = quotas
        self._bytes_of = bytes_of
        self._layouts: dict[str, dict[LayoutFingerprint, LayoutFingerprint]] = {}
        """By tenant: what it calls a layout → what the node calls it."""
        self._owners: dict[LayoutFingerprint, str] = {}
        self.over_quota: Counter[str] = Counter()

    def fold(self, tenant: str, keys: BlockKeys) -> BlockKeys:
        """The keys as this node knows them, for a verb of a tenant's session."""
        return BlockKeys(self.enter(tenant, keys.layout), keys.hashes)

    def enter(self, tenant: str, layout: LayoutFingerprint) -> LayoutFingerprint:
        """Note that a tenant uses a layout. Raises PermissionDeniedError for what is another's."""
        layouts = self._layouts.get(tenant)
        if layouts is None:
            layouts = self._add_tenant(tenant)
        folded = layouts.get(layout)
        return self._add_layout(tenant, layouts, layout) if folded is None else folded

    def owner(self, folded: LayoutFingerprint) -> str | None:
        """Whose blocks have this fingerprint; None if nobody has used it since the node began."""
        return self._owners.get(folded)

    def layouts(self, tenant: str) -> Collection[LayoutFingerprint]:
        """As the node calls them."""
        return self._layouts.get(tenant, {}).values()

    def host_bytes(self, tenant: str) -> int:
        """Slots in the host tier, those being written and those held back included."""
        return sum(map(self._bytes_of, self.layouts(tenant)))

    def quota_bytes(self, tenant: str) -> int | None:
        return self._quotas.get(tenant, self._quotas.get(ANY_TENANT))

    def usage(self) -> list[TenantUsage]:
        return [
            TenantUsage(
                tenant, self.host_bytes(tenant), self.quota_bytes(tenant), self.over_quota[tenant]
            )
            for tenant in self._layouts
        ]

    def _add_tenant(self, tenant: str) -> dict[LayoutFingerprint, LayoutFingerprint]:
        if len(self._layouts) >= MAX_TENANTS:
            idle = next((name for name in self._layouts if not self.host_bytes(name)), None)
            if idle is None:
                raise ResourceExhaustedError(
                    f"tenant: {MAX_TENANTS} tenants have blocks here; clear some, or use more nodes"
                )
            for folded in self._layouts.pop(idle).values():
                del self._owners[folded]
            del self.over_quota[idle]
        return self._layouts.setdefault(tenant, {})

    def _add_layout(
        self,
        tenant: str,
        layouts: dict[LayoutFingerprint, LayoutFingerprint],
        layout: LayoutFingerprint,
    ) -> LayoutFingerprint:
        folded = fold(tenant, layout)
        owner = self._owners.get(folded, tenant)
        if owner == DEFAULT_TENANT and tenant != DEFAULT_TENANT:
            del self._layouts[owner][folded]  # it is no digest of a layout: somebody guessed it
        elif owner != tenant:
            raise PermissionDeniedError(
                "keys.layout_fingerprint names blocks of another tenant; open a session with that "
                "tenant"
            )
        if len(layouts) >= MAX_LAYOUTS:
            idle = next((name for name in layouts if not self._bytes_of(layouts[name])), None)
            if idle is None:
                raise ResourceExhaustedError(
                    f"layouts: the tenant has blocks of {MAX_LAYOUTS} layouts here; clear some"
                )
            del self._owners[layouts.pop(idle)]
        layouts[layout] = folded
        self._owners[folded] = tenant
        return folded
