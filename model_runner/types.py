"""What a request is to an engine, and what a scheduler decides about it. Shared by both workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from kvstore.core.ids import BlockHash, RequestId
from kvstore.tiers.base import TierKind
from model_runner.kv_groups import BlockTable
from model_runner.misses import Miss

if TYPE_CHECKING:
    from model_runner.sampling.state import SamplingState


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the order of what is done is that of `sampling.sampler`.

    `sampling.validate` raises InvalidArgumentError for values out of range.
    """

    temperature: float = 0.0
    """0 = greedy: the largest logit, exactly."""
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int = 16
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    min_p: float = 0.0
    """Tokens less probable than this times the most probable one are out."""
    repetition_penalty: float = 1.0
    """Divides the logits above 0, and multiplies those below, of tokens in prompt or output."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token in the output, once."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time that it is in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that are never completed, wherever in prompt and output they begin."""
    min_tokens: int = 0
    """Neither EOS nor a stop token comes before the output has so many."""
    logprobs: int | None = None
    """Tell the log probability of each token, and of as many of the most probable ones."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens. The whole prompt is computed for it, whatever is cached."""


class FinishReason(Enum):
    STOP = 1
    LENGTH = 2
    CANCELLED = 3


@dataclass(slots=True, eq=False)
class Request:
    """One request inside an engine. Owned by the engine's thread from `submit` on.

    ```
    token_ids:  [ prompt ........................ | output ...... ]
                0        num_computed                        len
                [ KV in blocks      ][ still to compute          ]
    ```
    """

    request_id: RequestId
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    identity_root: bytes = b""
    """Where its prefix hash chain starts: the model's identity with the tenant's salt."""
    bypass_cache: bool = False
    priority: int = 0
    """Larger goes first: a head start, which is worth what the worker's scheduler says."""
    block_hashes: list[BlockHash] = field(default_factory=list)
    """Of the full blocks of `token_ids`; grows as tokens are generated. Empty with `bypass_cache`.
    """
    block_tables: list[BlockTable] = field(default_factory=list)
    """For each KV group, the device blocks that hold this sequence's KV; empty unless it is
    admitted."""
    num_computed: int = 0
    num_named: int = 0
    """How many leading blocks are complete, and were given their hashes in the device tier."""
    loading: bool = False
    """The store is being asked for its blocks: it must neither be computed nor lose its blocks."""
    hit_tokens: dict[TierKind, int] = field(default_factory=dict)
    """Prompt tokens that were not computed, by the tier that they came from."""
    missed_blocks: list[Miss] = field(default_factory=list)
    """Why the store did not bring those that follow the hits, in their order."""
    num_preemptions: int = 0
    prompt_told: bool = False
    """The log probabilities of its whole prompt were told: it needs them no more."""
    arrived_s: float = 0.0
    sampling_state: SamplingState | None = None
    """What the sampler keeps from step to step. It follows from the fields above: whoever has none
    makes it anew."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def reads_cache(self) -> bool:
        """Logits of the prompt's tokens come from computing them: a hit has none."""
        wants_logits = self.sampling.prompt_logprobs is not None and not self.prompt_told
        return not self.bypass_cache and not wants_logits


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute `num_tokens` more tokens of a request in this step: [num_computed, num_computed +
    num_tokens)."""

    request: Request
    num_tokens: int


class Blocks(Protocol):
    """The device tier as a scheduler sees it. Where it counts blocks, they are those of the first
    KV group."""

    def admit(self, request: Request, *, spare_blocks: int = 0) -> bool:
        """Fill the block tables, hits first: with room for all its tokens, or for all that a window
        shows of them and a block more. False and unchanged if fewer than `spare_blocks` would stay
        free."""

    def extend(self, request: Request, num_tokens: int) -> int:
        """Make room for the next `num_tokens` tokens, or for as many of them as there is room for:
        that many."""

    def growth(self, request: Request) -> int:
        """Blocks that it may still need for tokens to come, beyond those of its tokens by now."""

    def preempt(self, request: Request) -> None:
        """Empty the block tables; nothing of the request counts as computed any more. Its full
        blocks can be found again: here until they are evicted, and in the store."""

    @property
    def num_leaving(self) -> int:
        """Blocks of preempted requests that are held until the store has copied them: they become
        free without anyone's doing, within the store's deadline."""


class Scheduler(Protocol):
    """Decides what a step computes. Pure: no clock, no model; owned by the engine's thread."""

    def add(self, request: Request) -> None:
        """Queue it. It holds no blocks yet."""

    def remove(self, request: Request) -> None:
        """It finished or was cancelled; its blocks are the caller's to release. Idempotent."""

    def schedule(self, blocks: Blocks) -> Sequence[Chunk]:
        """Admit, preempt, and say what to compute next; empty when there is nothing (or no room) to
        do. Requests that are `loading` stay admitted and are left alone."""

    @property
    def num_running(self) -> int:
        """Requests admitted: loading or computed."""

    @property
    def num_waiting(self) -> int: ...
