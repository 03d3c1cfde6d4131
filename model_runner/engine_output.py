"""What an engine tells of a request, and of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvstore.core.errors import KVStoreError
from kvstore.tiers.base import TierKind
from model_runner.misses import Miss
from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.step_meter import StepStatistics
from model_runner.types import FinishReason


@dataclass(frozen=True, slots=True)
class FirstOutput:
    """How the first token of an answer came about."""

    hit_tokens: Mapping[TierKind, int]
    """Prompt tokens that were not computed, by the tier that they came from."""
    queue_s: float
    """Waited before the first computation, loads included."""
    compute_s: float
    """Of model steps that the request took part in."""
    missed_blocks: Mapping[Miss, int] = field(default_factory=dict)
    """Full blocks of the prompt that were computed, by the one reason of each."""


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """One piece of news of a request. In order: those with `prompt_logprobs`, if asked for; any
    number with tokens, the last of which has a `finish_reason`; then one with `published`. An
    `error` may come instead of any of them and is the last."""

    token_ids: tuple[int, ...] = ()
    first: FirstOutput | None = None
    finish_reason: FinishReason | None = None
    published: bool = False
    """Whatever of this request goes to the store is there now, or was given up."""
    error: KVStoreError | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`, or none if not asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the next prompt tokens, in order; the first token of a prompt has none."""


Emit = Callable[[EngineOutput], None]
"""Takes news on the engine's thread: it must neither block nor raise."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A snapshot, as of the last step."""

    running: int
    waiting: int
    waiting_tokens: int
    """Tokens of live requests that are not computed yet."""
    free_blocks: int
    total_blocks: int


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Counts since the engine started. Each is right by itself; they are not of one moment."""

    preemptions: int = 0
    demoted_blocks: int = 0
    """Full blocks of preempted requests that were handed to the store: it copies what it lacks."""
    loaded_back_blocks: int = 0
    """Blocks that the store brought for requests that had been preempted."""
    steps: StepStatistics = field(default_factory=StepStatistics)
