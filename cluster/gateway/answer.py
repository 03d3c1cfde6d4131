"""The answers to all prompts of one HTTP request: token ids in, text out, merged as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.gateway.answer_reader import AnswerReader, AnswerShape, Part
from cluster.gateway.generate import Generation
from cluster.gateway.openai_format import Choice, Usage
from kvstore.core.errors import DeadlineExceededError, KVStoreError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)

_QUEUED_PIECES_MAX = 64
"""Behind it a slow client holds back the workers' streams."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Of answer `index`; its last piece carries the reason to stop."""

    index: int
    part: Part
    finish_reason: str | None = None


class Answer:
    """One task for each answer, from `start` to `close`. Belongs to one event loop.

    An error of one answer is the error of the whole: it is raised to the reader in its turn.
    """

    def __init__(
        self,
        generations: Sequence[Generation],
        tokenizer: PreTrainedTokenizerBase,
        shape: AnswerShape,
        *,
        deadline_s: float,
    ) -> None:
        self.generations = generations
        self._shape = shape
        self._readers = [AnswerReader(tokenizer, shape) for _ in generations]
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
        pieces: list[list[Piece]] = [[] for _ in self.generations]
        async for piece in self.pieces():
            pieces[piece.index].append(piece)
        return [_choice(of_one) for of_one in pieces]

    def usages(self) -> list[Usage]:
        """Of each prompt with its answers. Final when `pieces` has ended."""
        size = self._shape.choices
        tokens = [reader.num_tokens for reader in self._readers]
        return [
            _usage(self.generations[i : i + size], sum(tokens[i : i + size]))
            for i in range(0, len(self.generations), size)
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
        source, reader = self.generations[index], self._readers[index]
        async with aclosing(source.tokens()) as stream:
            async for token_ids in stream:
                if self._shape.echo and not reader.num_tokens:
                    echo = reader.echo(source.job.prompt_token_ids, source.prompt_logprobs)
                    await self._queue.put(Piece(index, echo))
                await self._queue.put(Piece(index, reader.take(token_ids, source.logprobs)))
                if reader.stopped:
                    break
        rest = reader.end()
        await self._queue.put(Piece(index, rest, _finish_reason(source, reader)))


def _finish_reason(source: Generation, reader: AnswerReader) -> str:
    if not reader.stopped and not source.stopped:
        return "length"
    return "tool_calls" if reader.calls_tools else "stop"


def _choice(pieces: Sequence[Piece]) -> Choice:
    """Of all pieces of one answer."""
    parts = [piece.part for piece in pieces]
    told = tuple(token for part in parts for token in part.logprobs or ())
    return Choice(
        "".join(part.text for part in parts),
        pieces[-1].finish_reason or "",
        None if parts[-1].logprobs is None else told,
        tuple(call for part in parts for call in part.tool_calls),
    )


def _usage(samples: Sequence[Generation], output_tokens: int) -> Usage:
    """The prompt counts once, and so do its hits: those of the sample that found the least. The
    others found what that one had computed."""
    first = min(samples, key=lambda sample: sample.observation.num_hits)
    return Usage(len(first.job.prompt_token_ids), output_tokens, first.observation.hit_tokens)
