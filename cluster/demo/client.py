"""Sends demo requests with the official `openai` client and times what arrives."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import openai

from cluster.demo.workload import DemoRequest

Chunks = AsyncIterator[Any]
"""Chat and completion chunks alike; `_Pieces` reads what they share."""

TIERS = ("device", "host", "disk", "remote")


@dataclass(frozen=True)
class Answer:
    """What came back, and when, as the client saw it."""

    text: str
    output_tokens: int
    finish_reason: str
    prompt_tokens: int
    hit_tokens: dict[str, int]
    ttft_ms: float
    itl_ms: float | None
    """Mean time between tokens after the first; none for an answer of one token."""

    def says_the_same_as(self, other: Answer) -> bool:
        mine = (self.text, self.output_tokens, self.finish_reason)
        return mine == (other.text, other.output_tokens, other.finish_reason)


class DemoClient:
    """One connection to the gateway. Use as an async context manager; close it on its own loop."""

    def __init__(self, base_url: str, model: str, timeout_s: float) -> None:
        self._model = model
        self._openai = openai.AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=timeout_s
        )

    async def __aenter__(self) -> DemoClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._openai.close()

    async def ask(self, request: DemoRequest, *, cache: bool) -> Answer:
        """Stream one greedy answer. Raises openai.OpenAIError, or ValueError for a stream without
        its usage."""
        sent_s = time.perf_counter()
        pieces = _Pieces()
        async for chunk in await self._open(request, cache=cache):
            pieces.add(chunk, time.perf_counter() - sent_s)
        return pieces.answer()

    async def _open(self, request: DemoRequest, *, cache: bool) -> Chunks:
        common: dict[str, Any] = {
            "model": self._model,
            "max_tokens": request.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": {} if cache else {"cache": False},
        }
        if request.messages:
            chat: Any = self._openai.chat.completions
            return cast("Chunks", await chat.create(messages=list(request.messages), **common))
        completions: Any = self._openai.completions
        return cast("Chunks", await completions.create(prompt=list(request.prompt), **common))


class _Pieces:
    """Collects the chunks of one stream."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._finish_reason = ""
        self._first_s: float | None = None
        self._last_s = 0.0
        self._usage: Any = None

    def add(self, chunk: Any, elapsed_s: float) -> None:
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            text = choice.text if hasattr(choice, "text") else choice.delta.content
            self._texts.append(text or "")
            self._finish_reason = choice.finish_reason or self._finish_reason
            if text or choice.finish_reason:
                self._last_s = elapsed_s
                self._first_s = self._first_s if self._first_s is not None else elapsed_s

    def answer(self) -> Answer:
        if self._usage is None or self._first_s is None:
            raise ValueError("the stream ended before its usage came")
        tokens = self._usage.completion_tokens
        gap_s = (self._last_s - self._first_s) / (tokens - 1) if tokens > 1 else None
        details = self._usage.prompt_tokens_details
        hits = (details.model_extra or {}).get("hit_tokens", {}) if details else {}
        return Answer(
            text="".join(self._texts),
            output_tokens=tokens,
            finish_reason=self._finish_reason,
            prompt_tokens=self._usage.prompt_tokens,
            hit_tokens={tier: int(hits.get(tier) or 0) for tier in TIERS},
            ttft_ms=1e3 * self._first_s,
            itl_ms=None if gap_s is None else 1e3 * gap_s,
        )
