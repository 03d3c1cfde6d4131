"""`/tokenize` and `/detokenize`, in the shape that vLLM gave them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from cluster.gateway.authentication import tenant_of
from cluster.gateway.chat_schemas import MAX_MESSAGES, ChatMessage, ChatPrompt
from cluster.gateway.chat_template import encode_chat
from cluster.gateway.errors import BadFieldError
from cluster.gateway.fields import or_default, token_ids
from cluster.gateway.services import Services, services_of
from cluster.wire.v1 import conductor_pb2 as conductor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

router = APIRouter()


class TokenizeBody(ChatPrompt):
    """POST /tokenize: of a prompt, or of a chat."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    """May be left out where one model is served."""
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES), or_default([])] = Field(
        default_factory=list
    )
    add_special_tokens: Annotated[bool, or_default(True)] = True
    """Of a prompt; the template of a chat adds its own."""
    add_generation_prompt: Annotated[bool, or_default(True)] = True
    return_token_strs: Annotated[bool, or_default(False)] = False


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    tokens: Annotated[list[int], PlainValidator(token_ids)]


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> JSONResponse:
    model, tokenizer = await _admit(request, body.model)
    tokens = await asyncio.to_thread(_encode, tokenizer, body)
    strings = tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None
    return JSONResponse(
        {
            "count": len(tokens),
            "max_model_len": model.max_context_tokens,
            "tokens": tokens,
            "token_strs": strings,
        }
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> JSONResponse:
    _, tokenizer = await _admit(request, body.model)
    vocabulary = len(tokenizer)
    if body.tokens and max(body.tokens) >= vocabulary:
        raise BadFieldError(
            "tokens", f"{max(body.tokens)} is no token: the vocabulary ends at {vocabulary - 1}"
        )
    return JSONResponse({"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens)})


async def _admit(
    request: Request, name: str | None
) -> tuple[conductor.ModelInfo, PreTrainedTokenizerBase]:
    """It takes as much as a request for text to come in, if not to answer."""
    services = services_of(request)
    services.limits.admit(tenant_of(request.scope).name)
    async with asyncio.timeout(services.config.request_timeout_s):
        model = await services.cluster.catalog.get(name or await _only_model(services))
        return model, await services.tokenizers.get(model)


async def _only_model(services: Services) -> str:
    served = await services.cluster.catalog.models()
    if len(served) > 1:
        raise BadFieldError("model", f"must be one of {', '.join(sorted(served))}")
    return next(iter(served), "")


def _encode(tokenizer: PreTrainedTokenizerBase, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (not body.messages):
        raise BadFieldError("prompt", "give either a prompt or messages")
    if body.prompt is None:
        return encode_chat(tokenizer, body, add_generation_prompt=body.add_generation_prompt)
    tokens: list[int] = tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens)
    return tokens
