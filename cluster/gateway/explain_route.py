"""`GET /v1/explain/{request}`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from cluster.gateway.authentication import tenant_of
from cluster.gateway.errors import UnknownRequestError
from cluster.gateway.explain import Terms, explanation
from cluster.gateway.explain_text import as_text
from cluster.gateway.journal import RequestRecord
from cluster.gateway.services import Services, services_of
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.errors import KVStoreError

ASKED_MAX = 8
"""Generations of one request that the conductor is asked for: samples share a decision."""
ASKING_S = 1.0

router = APIRouter()


@router.get("/v1/explain/{name:path}")
async def explain(name: str, request: Request) -> Response:
    """By the id of an answer, or by its `x-request-id`. As text for those who accept that."""
    services = services_of(request)
    record = services.journal.find(name, tenant_of(request.scope))
    if record is None:
        raise UnknownRequestError(
            f"{name} is not among the last requests here; each gateway knows its own"
        )
    told = explanation(record, await _terms(services, record))
    if "text/plain" in request.headers.get("accept", ""):
        return PlainTextResponse(as_text(told))
    return JSONResponse(told)


async def _terms(services: Services, record: RequestRecord) -> Terms:
    """What the conductor still knows, which is not much longer than the decision."""
    names = [trace.generation_id for trace in record.generations[:ASKED_MAX]]
    told = await asyncio.gather(*(_ask(services, name) for name in names))
    return {name: terms for name, terms in zip(names, told, strict=True) if terms is not None}


async def _ask(services: Services, name: str) -> conductor.ExplainResponse | None:
    try:
        return await services.cluster.conductor.explain(name, deadline_s=ASKING_S)
    except KVStoreError:  # what the gateway knows is enough
        return None
