"""What a request asks of the scheduler beside its answer, from its headers and its body."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from starlette.datastructures import Headers

from cluster.gateway.errors import BadFieldError
from cluster.gateway.schemas import GenerationFields, TargetMs
from cluster.gateway.tenants import Tenant

_TARGET: TypeAdapter[float] = TypeAdapter(Annotated[TargetMs, Field(strict=False)])
_SESSION_CHARACTERS_MAX = 256


@dataclass(frozen=True, slots=True)
class Wishes:
    """Whose request it is, what it belongs to, and what its answer has to keep."""

    tenant: Tenant
    session: str | None = None
    """Of the tenant: two tenants never name the same one."""
    ttft_target_s: float | None = None
    itl_target_s: float | None = None


def read_wishes(tenant: Tenant, headers: Headers, fields: GenerationFields) -> Wishes:
    """A field of the body goes before the header of that name. Raises BadFieldError."""
    return Wishes(
        tenant,
        _session(tenant, headers, fields),
        _target_s(headers, "x-slo-ttft-ms", fields.slo_ttft_ms),
        _target_s(headers, "x-slo-itl-ms", fields.slo_itl_ms),
    )


def _target_s(headers: Headers, name: str, given_ms: float | None) -> float | None:
    text = headers.get(name)
    if given_ms is None and text is not None:
        try:
            given_ms = _TARGET.validate_python(text)
        except ValidationError as error:
            raise BadFieldError(name, error.errors()[0]["msg"]) from error
    return None if given_ms is None else given_ms / 1000


def _session(tenant: Tenant, headers: Headers, fields: GenerationFields) -> str | None:
    """A digest: names of users are nobody else's business, and have any length."""
    named = headers.get("x-session-id")
    if named is not None and len(named) > _SESSION_CHARACTERS_MAX:
        raise BadFieldError(
            "x-session-id", f"may have at most {_SESSION_CHARACTERS_MAX} characters"
        )
    given = named or fields.prompt_cache_key or fields.user
    if not given:
        return None
    return hashlib.sha256(f"{tenant.name}\0{given}".encode()).hexdigest()[:32]
