"""The answers to all prompts of one HTTP request: token ids in, text out, merged as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.gateway.generate import Generation
from cluster.gateway.logprobs import LogprobTeller, ToldToken
from cluster.gateway.openai_format import Choice, Usage
from kvstore.core.errors import DeadlineExceededError, KVStoreError
from model_runner.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)

_QUEUED_PIECES_MAX = 64
"""Behind it a slow client holds back the workers' streams."""


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """How tokens become answers. The same for all prompts of a request."""

    choices: int = 1
    """Answers to each prompt."""
    stop: Sequence[str] = ()
    min_tokens: int = 0
    """No stop string is looked for in the first ones."""
    logprobs: bool = False
    echo: bool = False
    """An answer begins with its prompt."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of answer `index`; its last piece carries the reason to stop."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: tuple[ToldToken, ...] | None = None
    """Of the tokens that came with this piece, if asked for. Their text may be held back, and come
    with a later one."""


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
        self._tokenizer = tokenizer
        self._shape = shape
        self._deadline_s = deadline_s
        self._queue: asyncio.Queue[Piece | KVStoreError] = asyncio.Queue(_QUEUED_PIECES_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._num_tokens = [0] * len(generations)
        """Of each answer, up to its end. A worker may be some tokens further."""

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
        return [
            _usage(self.generations[i : i + size], sum(self._num_tokens[i : i + size]))
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
        source, shape = self.generations[index], self._shape
        text = TextStream(self._tokenizer, shape.stop, min_tokens=shape.min_tokens)
        teller = LogprobTeller(self._tokenizer) if shape.logprobs else None
        async with aclosing(source.tokens()) as stream:
            async for token_ids in stream:
                if shape.echo and not self._num_tokens[index]:
                    await self._queue.put(self._echo(index, teller))
                await self._queue.put(self._take(index, token_ids, text, teller))
                if text.stopped:
                    break
        reason = "stop" if text.stopped or source.stopped else "length"
        rest = None if teller is None else ()
        await self._queue.put(Piece(index, text.flush(), reason, rest))

    def _take(
        self, index: int, token_ids: Sequence[int], text: TextStream, teller: LogprobTeller | None
    ) -> Piece:
        """Token by token, for those behind a stop string are no part of the answer."""
        source, texts, told = self.generations[index], [], []
        for token_id in token_ids:
            if text.stopped:
                break
            texts.append(text.push([token_id]))
            if teller is not None:
                told.append(teller.tell(token_id, source.logprobs[self._num_tokens[index]]))
            self._num_tokens[index] += 1
        return Piece(index, "".join(texts), None, None if teller is None else tuple(told))

    def _echo(self, index: int, teller: LogprobTeller | None) -> Piece:
        source = self.generations[index]
        prompt = source.job.prompt_token_ids
        text = TextStream(self._tokenizer)
        whole = text.push(prompt) + text.flush()
        if teller is None:
            return Piece(index, whole)
        told = zip(prompt, [None, *source.prompt_logprobs], strict=True)
        return Piece(index, whole, None, tuple(teller.tell(*one) for one in told))


def _choice(pieces: Sequence[Piece]) -> Choice:
    """Of all pieces of one answer."""
    told = [token for piece in pieces for token in piece.logprobs or ()]
    last = pieces[-1]
    return Choice(
        "".join(piece.text for piece in pieces),
        last.finish_reason or "",
        None if last.logprobs is None else tuple(told),
    )


def _usage(samples: Sequence[Generation], output_tokens: int) -> Usage:
    """The prompt counts once, and so do its hits: those of the sample that found the least. The
    others found what that one had computed."""
    first = min(samples, key=lambda sample: sample.observation.num_hits)
    return Usage(len(first.job.prompt_token_ids), output_tokens, first.observation.hit_tokens)
