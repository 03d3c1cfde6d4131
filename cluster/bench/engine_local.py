"""An engine inside this process: a decode worker's, without its service and without a store."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.bench.engine_setup import EngineSize, Prompt, worker_config
from decode_worker.scheduler import DecodeScheduler
from kvstore.core.errors import DeadlineExceededError
from kvstore.core.ids import RequestId
from kvstore.events.null import NullEventSink
from model_runner.engine import Engine
from model_runner.engine_output import Emit, EngineOutput
from model_runner.runner import ModelRunner
from model_runner.store import NullStore
from model_runner.types import Request, SamplingParams

_BATCH_TOKENS = 512
_SILENCE_S = 120.0
"""Time without any token after which a benchmark gives up."""
_ROOT = bytes(32)


@dataclass(frozen=True, slots=True)
class Heard:
    """News of one request, with the time at which it was told."""

    index: int
    output: EngineOutput
    at_s: float


class LocalEngine:
    """Answers prompts greedily, past EOS. One caller at a time.

    Prompts are hashed, and found again on the device, as a worker does: give it new ones.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._number = 0

    def answer(self, prompts: Sequence[Prompt], new_tokens: int) -> list[list[int]]:
        """All prompts at once; `new_tokens` of each answer."""
        answers: list[list[int]] = [[] for _ in prompts]
        for heard in self.listen(prompts, new_tokens):
            answers[heard.index] += heard.output.token_ids
        return answers

    def listen(self, prompts: Sequence[Prompt], new_tokens: int) -> Iterator[Heard]:
        """News of all, until each is answered. Raises what ends a request."""
        news: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        for index, prompt in enumerate(prompts):
            self._engine.submit(self._request(prompt, new_tokens), _teller(index, news))
        left = len(prompts)
        while left:
            try:
                heard = news.get(timeout=_SILENCE_S)
            except queue.Empty as error:
                raise DeadlineExceededError(f"no token within {_SILENCE_S:g} s") from error
            if heard.output.error is not None:
                raise heard.output.error
            left -= heard.output.finish_reason is not None
            yield heard

    def _request(self, prompt: Prompt, new_tokens: int) -> Request:
        self._number += 1
        sampling = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        name = RequestId(str(self._number))
        return Request(name, list(prompt), len(prompt), sampling, identity_root=_ROOT)


@contextmanager
def local_engine(model: Path, size: EngineSize, **settings: object) -> Iterator[LocalEngine]:
    """Room for twice what is asked at a time, so that nobody waits for blocks."""
    blocks = 2 * size.num_sequences * size.blocks_of(2 * size.short_tokens)
    runner = ModelRunner(worker_config(model, blocks, **settings))
    scheduler = DecodeScheduler(max_batch_tokens=_BATCH_TOKENS, max_running=size.num_sequences)
    engine = Engine(
        runner, scheduler, NullStore(), NullEventSink(), max_live=2 * size.num_sequences
    )
    try:
        yield LocalEngine(engine)
    finally:
        engine.close()


def _teller(index: int, news: queue.SimpleQueue[Heard]) -> Emit:
    def tell(output: EngineOutput) -> None:
        news.put(Heard(index, output, time.perf_counter()))

    return tell
