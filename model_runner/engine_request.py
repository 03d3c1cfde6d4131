"""Requests while they are inside an engine, and whom to tell of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass

from kvstore.core.errors import ResourceExhaustedError, UnavailableError
from kvstore.core.ids import RequestId
from model_runner.engine_output import Emit, EngineOutput, FirstOutput
from model_runner.misses import prompt_misses
from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.sampling.sampler import SampledToken
from model_runner.types import FinishReason, Request


@dataclass(slots=True, eq=False)
class LiveRequest:
    """Owned by the engine's thread."""

    request: Request
    emit: Emit
    queue_s: float | None = None
    compute_s: float = 0.0
    num_publishing: int = 0
    """Batches of its blocks on their way to the store."""
    num_prompt_logprobs: int = 0
    """How many were told: a preempted request computes them again."""
    told_first: bool = False
    answered: bool = False
    """Its last token was told; it is here for its blocks that are being published."""

    def computed(self, started_s: float, took_s: float) -> None:
        """It took part in a step."""
        if self.queue_s is None:
            self.queue_s = started_s - self.request.arrived_s
        self.compute_s += took_s

    def output(
        self, sampled: SampledToken, eos_token_ids: Set[int], block_size_tokens: int
    ) -> EngineOutput:
        """News of the token that was just appended."""
        first = None if self.told_first else self._first(block_size_tokens)
        self.told_first = True
        return EngineOutput(
            token_ids=(sampled.token_id,),
            logprobs=() if sampled.logprobs is None else (sampled.logprobs,),
            first=first,
            finish_reason=finish_reason(self.request, eos_token_ids),
        )

    def tell_prompt(self, start: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """Log probabilities of the prompt tokens from position `start` + 1 on."""
        new = tuple(logprobs[max(0, self.num_prompt_logprobs - start) :])
        self.num_prompt_logprobs += len(new)
        self.request.prompt_told = self.num_prompt_logprobs == self.request.num_prompt_tokens - 1
        if new:
            self.emit(EngineOutput(prompt_logprobs=new))

    def _first(self, block_size_tokens: int) -> FirstOutput:
        assert self.queue_s is not None
        missed = prompt_misses(self.request, block_size_tokens)
        return FirstOutput(dict(self.request.hit_tokens), self.queue_s, self.compute_s, missed)


def finish_reason(request: Request, eos_token_ids: Set[int]) -> FinishReason | None:
    """Whether the last token ends the answer. Before `min_tokens` the sampler lets none come that
    would."""
    sampling, last = request.sampling, request.token_ids[-1]
    if last in sampling.stop_token_ids:
        return FinishReason.STOP
    if last in eos_token_ids and not sampling.ignore_eos:
        return FinishReason.STOP
    return FinishReason.LENGTH if request.num_output_tokens >= sampling.max_tokens else None


class LiveRequests:
    """Requests that an engine has accepted and not finished: `max_live` at most. Thread-safe."""

    def __init__(self, max_live: int) -> None:
        self._max_live = max_live
        self._lock = threading.Condition()
        self._live: dict[RequestId, LiveRequest] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def enter(self, live: LiveRequest) -> None:
        """Raises ResourceExhaustedError at the bound, UnavailableError once closed."""
        with self._lock:
            if self._closed:
                raise UnavailableError("the engine has stopped: use another worker")
            if len(self._live) >= self._max_live:
                raise ResourceExhaustedError(
                    f"{len(self._live)} requests run or wait here, the most there may be: retry "
                    "later, or raise max_waiting"
                )
            assert live.request.request_id not in self._live
            self._live[live.request.request_id] = live

    def get(self, request_id: RequestId) -> LiveRequest | None:
        with self._lock:
            return self._live.get(request_id)

    def leave(self, request_id: RequestId) -> bool:
        """False if it had left already."""
        with self._lock:
            left = self._live.pop(request_id, None) is not None
            if not self._live:
                self._lock.notify_all()
            return left

    def snapshot(self) -> list[LiveRequest]:
        with self._lock:
            return list(self._live.values())

    def close(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._closed = True

    def wait_empty(self, timeout_s: float) -> bool:
        """False if somebody is there still."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._live, timeout_s)
