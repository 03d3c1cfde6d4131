"""Sends the workload: everything once with the cache, then once more without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import openai

from cluster.demo.client import DemoClient
from cluster.demo.report import Outcome
from cluster.demo.trace import TraceRequest
from cluster.demo.workload import (
    DemoRequest,
    WorkloadSize,
    chat_request,
    comparison_requests,
    token_run,
    trace_requests,
    users,
)

REFERENCES_AT_A_TIME = 2


class WorkloadRunner:
    """Requests with the cache go one after the other, so that the hits of each are its own doing.

    A failed request becomes a failed outcome; the rest goes on.
    """

    def __init__(
        self, client: DemoClient, size: WorkloadSize, progress: Callable[[str], None]
    ) -> None:
        self._client = client
        self._size = size
        self._progress = progress
        self._outcomes: list[Outcome] = []

    async def run(self, trace: Sequence[TraceRequest]) -> list[Outcome]:
        size = self._size
        await self._warm_up()
        self._progress(f"chat: {size.users} users, {size.turns} turns each, one system prompt")
        await self._chat()
        self._progress("long prompts: cold, then again after the device forgot them")
        await self._ask_each(comparison_requests(size, "cold"))
        await self._ask_each(comparison_requests(size, "warm host"))
        self._progress("trace: pushes the long prompts out of the host tier")
        await self._ask_each(trace_requests(size, trace))
        self._progress("long prompts: again, from the disk")
        await self._ask_each(comparison_requests(size, "warm disk"))
        self._progress("the same requests without the cache")
        return await self._with_references()

    async def _warm_up(self) -> None:
        """Loads the gateway's tokenizer, which is no part of any time to first token."""
        prompt = token_run("warm-up", 1, self._size.vocab_size)
        await self._ask(DemoRequest("warm-up", "chat", 1, prompt=prompt), cache=False)

    async def _chat(self) -> None:
        answers: dict[str, list[str]] = {user: [] for user in users(self._size)}
        for turn in range(self._size.turns):
            for user in answers:
                request = chat_request(self._size, user, turn, answers[user])
                outcome = await self._ask(request, cache=True)
                self._outcomes.append(outcome)
                answers[user].append(outcome.answer.text if outcome.answer else "")

    async def _ask_each(self, requests: Iterable[DemoRequest]) -> None:
        for request in requests:
            self._outcomes.append(await self._ask(request, cache=True))

    async def _with_references(self) -> list[Outcome]:
        distinct = {_content(o.request): o.request for o in self._outcomes}
        slots = asyncio.Semaphore(REFERENCES_AT_A_TIME)

        async def reference(request: DemoRequest) -> Outcome:
            async with slots:
                return await self._ask(request, cache=False)

        asked = await asyncio.gather(*map(reference, distinct.values()))
        references = dict(zip(distinct, asked, strict=True))
        return [_compared(o, references[_content(o.request)]) for o in self._outcomes]

    async def _ask(self, request: DemoRequest, *, cache: bool) -> Outcome:
        try:
            return Outcome(request, answer=await self._client.ask(request, cache=cache))
        except (openai.OpenAIError, ValueError) as error:
            return Outcome(request, error=f"{type(error).__name__}: {error}")


def _content(request: DemoRequest) -> str:
    """Requests that ask the same have the same; their names and phases may differ."""
    return repr((request.messages, request.prompt, request.max_tokens))


def _compared(outcome: Outcome, reference: Outcome) -> Outcome:
    error = outcome.error or reference.error
    return replace(outcome, reference=reference.answer, error=error)
