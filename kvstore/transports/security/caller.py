"""Who calls: set by the transport for the duration of a call, asked by its handler.

A transport that asks for credentials sets the caller of every call. Where none are asked for (the
embedded node, a Unix socket that only its owner can open, a loopback address left open), the caller
is TRUSTED.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from kvstore.core.errors import PermissionDeniedError


class Role(StrEnum):
    CLIENT = "client"
    """Reads and writes blocks of its tenant."""
    PEER = "peer"
    """Another process of the cluster: reads every tenant's blocks and the block events."""
    ADMIN = "admin"
    """Opens sessions for any tenant."""


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant` None: any tenant. The default tenant is the empty string."""

    name: str
    tenant: str | None
    roles: frozenset[Role]


TRUSTED = Caller("trusted", None, frozenset(Role))

_caller: ContextVar[Caller] = ContextVar("kvstore_caller", default=TRUSTED)


def set_caller(caller: Caller) -> None:
    """For the rest of the running task (its context): a transport serves each call in one of its
    own."""
    _caller.set(caller)


def current_caller() -> Caller:
    return _caller.get()


def require_role(role: Role) -> None:
    """Raises PermissionDeniedError if the caller of this call lacks it."""
    caller = _caller.get()
    if role not in caller.roles:
        raise PermissionDeniedError(
            f"{caller.name} lacks the role {role.value!r}, which this call needs; use credentials "
            "that have it"
        )


def authorize_tenant(requested: str) -> str:
    """The tenant that this call acts for: the one requested, or the caller's own where that is
    empty. Raises PermissionDeniedError for another's."""
    caller = _caller.get()
    if caller.tenant is None:
        return requested
    if requested not in ("", caller.tenant):
        raise PermissionDeniedError(
            f"{caller.name} belongs to tenant {caller.tenant!r}, not {requested!r}; use that "
            "tenant's credentials"
        )
    return caller.tenant


def authorize_session(requested_tenant: str, *, peer: bool) -> str:
    """The tenant of a session to be opened. Raises PermissionDeniedError for another's, and where
    the role (`peer`, else `client` or `admin`) is lacking."""
    if peer:
        require_role(Role.PEER)
    elif Role.ADMIN not in _caller.get().roles:
        require_role(Role.CLIENT)
    return authorize_tenant(requested_tenant)
