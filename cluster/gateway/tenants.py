"""Who asks: an API key, the tenant that it belongs to, and what that tenant shares with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.gateway.config import TenantConfig
from cluster.gateway.errors import ApiKeyError, NotAllowedError
from kvstore.core.errors import UnauthenticatedError
from kvstore.transports.security.caller import TRUSTED, Caller, Role
from kvstore.transports.security.clients import Clients

DEFAULT_TENANT = "default"
"""Everybody's, where no keys are asked for; also that of a key whose tenant is the empty string."""

_SCHEME = "bearer"


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    cache_salt: str
    """Part of every block hash; tenants of different salts never share a block."""
    is_admin: bool
    """May see what all tenants do."""


class Tenants:
    """From the `Authorization` header to the tenant. Immutable; any thread may ask."""

    def __init__(self, clients: Clients | None, settings: Mapping[str, TenantConfig]) -> None:
        """`clients` None: no key is asked for, and one that is sent is not looked at."""
        self._clients = clients
        self._settings = settings

    def of(self, authorization: str | None) -> Tenant:
        """Raises ApiKeyError for a key that is missing, unknown or expired, NotAllowedError for
        one that is not for clients."""
        caller = TRUSTED if self._clients is None else _caller(self._clients, authorization)
        if not caller.roles & {Role.CLIENT, Role.ADMIN}:
            raise NotAllowedError(f"the key of {caller.name} is no client's; use another one")
        name = caller.tenant or DEFAULT_TENANT
        return Tenant(name, self._salt(name), Role.ADMIN in caller.roles)

    def _salt(self, name: str) -> str:
        settings = self._settings.get(name)
        if settings is not None and settings.cache_salt is not None:
            return settings.cache_salt
        return "" if name == DEFAULT_TENANT else name


def load_clients(path: Path | None) -> Clients | None:
    """Raises ConfigurationError, one line that names what cannot be used."""
    return None if path is None else Clients.load("gateway.clients", path)


def _caller(clients: Clients, authorization: str | None) -> Caller:
    if authorization is None:
        raise ApiKeyError("no API key was sent; write it as `Authorization: Bearer KEY`")
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != _SCHEME or not key.isascii():
        raise ApiKeyError("the API key cannot be read; write it as `Authorization: Bearer KEY`")
    try:
        return clients.caller_of_token(key.strip())
    except UnauthenticatedError as error:
        raise ApiKeyError(str(error)) from error
