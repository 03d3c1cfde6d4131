"""The HTTP routes."""

from __future__ import annotations

from importlib.metadata import version as version_of

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cluster.gateway.chat_format import ChatFormat
from cluster.gateway.chat_schemas import MAX_TOOLS, ChatBody
from cluster.gateway.chat_template import calls_can_be_read, encode_chat
from cluster.gateway.health import health_json, unreachable_json
from cluster.gateway.openai_format import CompletionFormat, model_json
from cluster.gateway.prompts import encode_prompt
from cluster.gateway.schemas import CompletionBody
from cluster.gateway.serve import Call, serve
from cluster.gateway.services import services_of
from kvstore.core.errors import KVStoreError

COMPLETION_TOKENS_DEFAULT = 16
"""OpenAI's default for /v1/completions."""

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 when the conductor answers and a decode worker is there, else 503 with the reasons."""
    try:
        status, body = health_json(await services_of(request).cluster.catalog.members())
    except KVStoreError as error:
        status, body = unreachable_json(str(error))
    return JSONResponse(body, status)


@router.get("/version")
async def version() -> JSONResponse:
    return JSONResponse({"version": version_of("open-kvstore")})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    registry = services_of(request).metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(request: Request) -> JSONResponse:
    served = await services_of(request).cluster.catalog.models()
    return JSONResponse(
        {"object": "list", "data": [model_json(served[name]) for name in sorted(served)]}
    )


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> JSONResponse:
    return JSONResponse(model_json(await services_of(request).cluster.catalog.get(name)))


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Response:
    call = Call(
        fields=body,
        prompts=len(body.prompt),
        encode=lambda tokenizer: [encode_prompt(tokenizer, p) for p in body.prompt],
        format=CompletionFormat(),
        answer_tokens_asked=body.max_tokens,
        answer_tokens_default=COMPLETION_TOKENS_DEFAULT,
    )
    return await serve(services_of(request), request, call)


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, request: Request) -> Response:
    calls_max = MAX_TOOLS if body.parallel_tool_calls else 1
    call = Call(
        fields=body,
        prompts=1,
        encode=lambda tokenizer: [encode_chat(tokenizer, body)],
        format=ChatFormat(),
        answer_tokens_asked=body.answer_tokens_max,
        answer_tokens_default=None,
        tool_calls_max=lambda tokenizer: calls_max if calls_can_be_read(tokenizer, body) else 0,
    )
    return await serve(services_of(request), request, call)
