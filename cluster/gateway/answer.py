"""The answers to all prompts of one HTTP request: token ids in, text out, merged as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.gateway.generate import Generation
from cluster.gateway.openai_format import Choice, Usage
from kvstore.core.errors import DeadlineExceededError, KVStoreError
from model_runner.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)

_QUEUED_PIECES_MAX = 64
"""Behind it a slow client holds back the workers' streams."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of the answer to prompt `index`; its last piece carries the reason to stop."""

    index: int
    text: str
    finish_reason: str | None = None


class Answer:
    """One task for each prompt, from `start` to `close`. Belongs to one event loop.

    An error of one prompt is the error of the whole: it is raised to the reader in its turn.
    """

    def __init__(
        self,
        generations: Sequence[Generation],
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str],
        *,
        deadline_s: float,
    ) -> None:
        self.generations = generations
        self._tokenizer = tokenizer
        self._stop = stop
        self._deadline_s = deadline_s
        self._queue: asyncio.Queue[Piece | KVStoreError] = asyncio.Queue(_QUEUED_PIECES_MAX)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        assert not self._tasks
        self._tasks = [
            asyncio.create_task(self._run(index)) for index in range(len(self.generations))
        ]

    async def pieces(self) -> AsyncIterator[Piece]:
        """Ends when all prompts are answered. Raises errors of `kvstore.core.errors`."""
        unfinished = len(self.generations)
        while unfinished:
            item = await self._queue.get()
            if isinstance(item, KVStoreError):
                raise item
            unfinished -= item.finish_reason is not None
            yield item

    async def collect(self) -> list[Choice]:
        texts: list[list[str]] = [[] for _ in self.generations]
        reasons = ["" for _ in self.generations]
        async for piece in self.pieces():
            texts[piece.index].append(piece.text)
            reasons[piece.index] = piece.finish_reason or ""
        return [Choice("".join(t), reason) for t, reason in zip(texts, reasons, strict=True)]

    def usages(self) -> list[Usage]:
        """Final when `pieces` has ended."""
        return [
            Usage(
                len(g.job.prompt_token_ids), g.observation.output_tokens, g.observation.hit_tokens
            )
            for g in self.generations
        ]

    async def close(self) -> None:
        """Cancels what still runs, on the workers too. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, index: int) -> None:
        try:
            async with asyncio.timeout_at(self._deadline_s):
                await self._generate(index)
        except KVStoreError as error:
            await self._queue.put(error)
        except TimeoutError:
            await self._queue.put(
                DeadlineExceededError("the answer was not complete in time; ask for fewer tokens")
            )
        except Exception:
            # Boundary of the task: the reader must hear of a defect too, or it would wait forever.
            _LOG.exception("defect while generating")
            await self._queue.put(KVStoreError("defect while generating; see the gateway's log"))

    async def _generate(self, index: int) -> None:
        source = self.generations[index]
        text = TextStream(self._tokenizer, self._stop)
        async with aclosing(source.tokens()) as stream:
            async for token_ids in stream:
                await self._queue.put(Piece(index, text.push(token_ids)))
                if text.stopped:
                    break
        reason = "stop" if text.stopped or source.stopped else "length"
        await self._queue.put(Piece(index, text.flush(), reason))
