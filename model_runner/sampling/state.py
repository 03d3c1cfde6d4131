"""What the sampler keeps of a request from one token to the next."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_runner.sampling.bad_words import BadWords
from model_runner.sampling.random_stream import RandomStream
from model_runner.sampling.seen import SeenTokens
from model_runner.types import Request


@dataclass(frozen=True, slots=True)
class Bias:
    """What is added to which tokens."""

    ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, bias: Mapping[int, float]) -> Bias:
        return cls(np.fromiter(bias.keys(), np.int64), np.fromiter(bias.values(), np.float32))


class SamplingState:
    """Made from a request alone, at its first token here: a worker that takes over, or a request
    that comes back from preemption, samples on as if nothing had happened. Owned by the engine's
    thread, together with the request.

    What a request does not ask for is None, and costs nothing.
    """

    __slots__ = ("bad_words", "bias", "edits", "held_back", "seen", "stream")

    def __init__(self, request: Request, eos_token_ids: Set[int]) -> None:
        params = request.sampling
        assert params.temperature == 0 or params.seed is not None, "sampling needs a seed"
        self.stream = RandomStream(params.seed) if params.seed is not None else None
        self.bad_words = BadWords(params.bad_words) if params.bad_words else None
        self.held_back = _held_back(request, eos_token_ids) if params.min_tokens else None
        self.bias = Bias.of(params.logit_bias) if params.logit_bias else None
        penalised = (
            params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        )
        self.seen = SeenTokens() if penalised else None
        self.edits = bool(self.bad_words or self.held_back or self.bias or penalised)
        """Some logits of its row are changed before a token is chosen."""

    def forbidden(self, request: Request) -> list[int]:
        """Tokens that may not come next."""
        tokens = self.bad_words.after(request.token_ids) if self.bad_words else []
        if self.held_back and request.num_output_tokens < request.sampling.min_tokens:
            tokens += self.held_back
        return tokens


def _held_back(request: Request, eos_token_ids: Set[int]) -> list[int]:
    """What ends an answer, and may not until `min_tokens` are there."""
    params = request.sampling
    return sorted(params.stop_token_ids | (set() if params.ignore_eos else eos_token_ids))


def state_of(request: Request, eos_token_ids: Set[int]) -> SamplingState:
    """The request's state, made now if there is none."""
    if request.sampling_state is None:
        request.sampling_state = SamplingState(request, eos_token_ids)
    return request.sampling_state
