"""A request inside an instance, and what is remembered of it for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from cluster.simulator.workload import SimRequest
from kvstore.core.ids import BlockHash, MemberId


class Ending(Enum):
    COMPLETED = "completed"
    REJECTED = "rejected"
    """Not placed: by the conductor's admission, or because there is no worker."""
    FAILED = "failed"
    """Placed, and lost: its workers died too often, or it is larger than a device tier."""


@dataclass(slots=True, eq=False)
class Record:
    """What became of a request; written as it goes, read by the report."""

    request: SimRequest
    ending: Ending | None = None
    reason: str = ""
    attempts: int = 0
    first_token_s: float | None = None
    """When the client saw it."""
    last_token_s: float = 0.0
    started_s: float = 0.0
    """When the first step for it began."""
    device_tokens: int = 0
    """Prompt tokens found in the device tier of the worker that prefilled."""
    host_tokens: int = 0
    remote_tokens: int = 0
    computed_tokens: int = 0
    compute_s: float = 0.0
    """Of the steps that it took part in before its first token."""
    preempted: int = 0
    prefiller: MemberId | None = None
    decoder: MemberId | None = None

    def see_first_token(self, time_s: float) -> None:
        """No-op if the client has seen it before: this is another attempt."""
        if self.first_token_s is None:
            self.first_token_s = time_s

    def unsee(self, now_s: float) -> None:
        """A first token that was still to come does not."""
        if self.first_token_s is not None and self.first_token_s > now_s:
            self.first_token_s = None

    @property
    def ttft_s(self) -> float:
        assert self.first_token_s is not None
        return self.first_token_s - self.request.arrival_s

    @property
    def itl_s(self) -> float | None:
        """Mean time between its tokens; None of a single one."""
        assert self.first_token_s is not None
        gaps = self.request.output_tokens - 1
        return (self.last_token_s - self.first_token_s) / gaps if gaps else None


@dataclass(slots=True, eq=False)
class SimSequence:
    """One attempt at a request, owned by one instance at a time."""

    record: Record
    resumed: int = 0
    """Tokens that an earlier attempt had made."""
    generated: int = field(init=False)
    """Tokens made so far; while it decodes, as of `joined_step`."""
    computed: int = 0
    """Tokens whose KV is in `table`."""
    table: list[int] = field(default_factory=list)
    """Device blocks that it holds a reference on, in prefix order."""
    order: int = 0
    """Of admission: the latest is preempted first."""
    hands_over: bool = False
    """Decoded by another instance than the one that prefills it."""
    started: bool = False
    looked_up: bool = False
    """Whether the tiers beyond the device were asked."""
    host_tokens: int = 0
    """Of `computed`: loaded from the node's own host tier, and from other nodes."""
    remote_tokens: int = 0
    joined_step: int = 0
    end_step: int = 0
    grows_at: int = 0
    """While it decodes: it needs another block at the steps that leave this remainder."""

    def __post_init__(self) -> None:
        self.generated = self.resumed

    @property
    def request(self) -> SimRequest:
        return self.record.request

    @property
    def known_tokens(self) -> int:
        """Prompt and what was generated: what has to be in `table` to go on."""
        return self.request.prompt_tokens + self.generated

    @property
    def uncomputed(self) -> int:
        return self.known_tokens - self.computed

    @property
    def tokens_left(self) -> int:
        return self.request.output_tokens - self.generated

    @property
    def blocks(self) -> Sequence[BlockHash]:
        return self.request.blocks

    def note_start(self, now_s: float) -> None:
        """It is about to compute the rest of its prompt."""
        self.started = True
        record = self.record
        record.started_s = now_s
        record.device_tokens = self.computed - self.host_tokens - self.remote_tokens
        record.host_tokens, record.remote_tokens = self.host_tokens, self.remote_tokens
        record.computed_tokens = self.request.prompt_tokens - self.computed
