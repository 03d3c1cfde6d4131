"""One request for text, from its body to its response."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from cluster.gateway import responses
from cluster.gateway.answer import Answer
from cluster.gateway.answer_reader import AnswerShape
from cluster.gateway.authentication import tenant_of
from cluster.gateway.generate import Generation
from cluster.gateway.journal import RequestRecord
from cluster.gateway.observation import Observation
from cluster.gateway.openai_format import Envelope, Format
from cluster.gateway.prompts import Job, build_jobs
from cluster.gateway.schemas import GenerationFields
from cluster.gateway.services import Services
from cluster.gateway.shared_route import SharedRoute
from cluster.gateway.wishes import Wishes, read_wishes
from kvstore.core.errors import DeadlineExceededError
from kvstore.observability.logging import request_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INLINE_BODY_BYTES_MAX = 16 << 10
"""Prompts of larger bodies are tokenized and hashed on a thread: others' tokens must not wait."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the two routes differ in."""

    fields: GenerationFields
    prompts: int
    encode: Callable[[PreTrainedTokenizerBase], Sequence[list[int]]]
    format: Format
    answer_tokens_asked: int | None
    answer_tokens_default: int | None
    tool_calls_max: Callable[[PreTrainedTokenizerBase], int] = lambda _: 0
    """See `AnswerShape`."""


async def serve(services: Services, request: Request, call: Call) -> Response:
    """Raises errors of `kvstore.core.errors` as long as the response has not begun."""
    deadline_s = asyncio.get_running_loop().time() + services.config.request_timeout_s
    return await responses.while_connected(
        request, lambda: _respond(services, request, call, deadline_s)
    )


async def _respond(services: Services, request: Request, call: Call, deadline_s: float) -> Response:
    wishes = read_wishes(tenant_of(request.scope), request.headers, call.fields)
    services.limits.admit(wishes.tenant.name)
    envelope = Envelope(
        call.format.id_prefix + secrets.token_hex(12), int(time.time()), call.fields.model
    )
    async with AsyncExitStack() as resources:
        resources.enter_context(services.in_flight.admit(call.prompts * call.fields.n))
        answer = await _start(services, request, call, wishes, envelope, deadline_s)
        resources.callback(_charge_answer, services, wishes, answer)
        resources.push_async_callback(answer.close)
        if not call.fields.stream:
            return await responses.whole(answer, envelope, call.format)
        pieces = answer.pieces()
        first = await anext(pieces)
        return responses.EventStream(
            responses.events(
                answer,
                first,
                pieces,
                envelope,
                call.format,
                include_usage=call.fields.include_usage,
            ),
            resources.pop_all(),
            headers=responses.worker_headers(answer),
            deadline_s=deadline_s,
        )


async def _start(
    services: Services,
    request: Request,
    call: Call,
    wishes: Wishes,
    envelope: Envelope,
    deadline_s: float,
) -> Answer:
    arrived_s = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(deadline_s):
            prepared = await _prepare(services, request, call, wishes, envelope)
    except DeadlineExceededError:  # of the conductor; it says more
        raise
    except TimeoutError as error:
        raise DeadlineExceededError("the request could not be prepared in time") from error
    jobs, tenant = prepared.jobs, wishes.tenant.name
    services.limits.charge(tenant, sum(len(j.prompt_token_ids) for j in jobs[:: call.fields.n]))
    record = RequestRecord(envelope.id, request_id.get() or "", tenant, call.fields.model)
    services.journal.open(record)
    answer = Answer(
        _generations(services, jobs, record, call.fields.n, arrived_s, deadline_s),
        prepared.tokenizer,
        _shape(call, prepared.tokenizer),
        deadline_s=deadline_s,
    )
    answer.start()
    return answer


@dataclass(frozen=True, slots=True)
class _Prepared:
    tokenizer: PreTrainedTokenizerBase
    jobs: Sequence[Job]


async def _prepare(
    services: Services, request: Request, call: Call, wishes: Wishes, envelope: Envelope
) -> _Prepared:
    model = await services.cluster.catalog.get(call.fields.model)
    tokenizer = await services.tokenizers.get(model)

    def build() -> list[Job]:
        return build_jobs(
            envelope.id,
            model,
            tokenizer,
            call.encode(tokenizer),
            call.fields,
            wishes,
            call.answer_tokens_asked,
            call.answer_tokens_default,
            services.prompt_keys,
        )

    large = len(await request.body()) > INLINE_BODY_BYTES_MAX
    return _Prepared(tokenizer, await asyncio.to_thread(build) if large else build())


def _shape(call: Call, tokenizer: PreTrainedTokenizerBase) -> AnswerShape:
    return AnswerShape(
        choices=call.fields.n,
        stop=call.fields.stop,
        min_tokens=call.fields.min_tokens,
        logprobs=call.fields.logprobs_asked is not None,
        echo=call.fields.echoes,
        tool_calls_max=call.tool_calls_max(tokenizer),
    )


def _charge_answer(services: Services, wishes: Wishes, answer: Answer) -> None:
    output_tokens = sum(len(one.output_token_ids) for one in answer.generations)
    services.limits.charge(wishes.tenant.name, output_tokens)


def _generations(
    services: Services,
    jobs: Sequence[Job],
    record: RequestRecord,
    choices: int,
    arrived_s: float,
    deadline_s: float,
) -> list[Generation]:
    """The samples of a prompt share their route, so that they share its blocks."""
    routes = [SharedRoute() for _ in range(len(jobs) // choices)]
    return [
        Generation(
            job,
            services.cluster,
            _observation(services, job, arrived_s),
            deadline_s=deadline_s,
            shared_route=routes[number // choices],
            record=record,
        )
        for number, job in enumerate(jobs)
    ]


def _observation(services: Services, job: Job, arrived_s: float) -> Observation:
    return Observation(
        services.metrics,
        asyncio.get_running_loop().time,
        model=job.model.name,
        prompt_tokens=len(job.prompt_token_ids),
        arrived_s=arrived_s,
    )
