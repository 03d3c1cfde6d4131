"""Lets in whoever shows an API key, before anything of a request is read but its head."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.gateway.errors import NotAllowedError, answer_of
from cluster.gateway.tenants import Tenant, Tenants
from kvstore.core.errors import KVStoreError

_OPEN_PATHS = frozenset({"/health", "/version"})
"""For probes, which have no keys."""
_ADMIN_PATHS = frozenset({"/metrics"})


class Authentication:
    """ASGI middleware. Puts the tenant into the state of the request; see `tenant_of`."""

    def __init__(self, app: ASGIApp, tenants: Tenants) -> None:
        self._app = app
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            try:
                tenant = self._tenants.of(Headers(scope=scope).get("authorization"))
                _check(tenant, scope["path"])
            except KVStoreError as error:
                answer = answer_of(error)
                response = JSONResponse(answer.body(), answer.status, headers=answer.headers())
                await response(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)


def tenant_of(scope: Scope) -> Tenant:
    tenant = scope["state"]["tenant"]
    assert isinstance(tenant, Tenant)
    return tenant


def _check(tenant: Tenant, path: str) -> None:
    if path in _ADMIN_PATHS and not tenant.is_admin:
        raise NotAllowedError(f"{path} tells of all tenants; use a key with the role admin")
