"""What the conductor knows of members and requests, and what it answers. Frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf

from kvstore.core.ids import MemberId, NodeId, RequestId, RoutingKey
from kvstore.core.layout import KVLayout


class Role(IntEnum):
    """Same numbers as `Role` in conductor.proto."""

    NODE = 1
    PREFILL = 2
    DECODE = 3


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker serves. Two workers of one name must agree on identity and layout."""

    name: str
    identity_root: bytes
    layout: KVLayout
    max_context_tokens: int
    path: str


@dataclass(frozen=True, slots=True)
class Member:
    member_id: MemberId
    role: Role
    grpc_address: str
    node_id: NodeId
    """The store node of its host (empty: none); a node's own id."""
    event_endpoint: str = ""
    replay_endpoint: str = ""
    model: ModelInfo | None = None
    """Workers only."""


@dataclass(frozen=True, slots=True)
class Load:
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    free_blocks: int = 0
    total_blocks: int = 0


@dataclass(frozen=True, slots=True)
class MemberStatus:
    member: Member
    load: Load
    draining: bool
    silent_s: float
    indexed_blocks: int


@dataclass(frozen=True, slots=True)
class Targets:
    """What the answer has to keep to be good; infinite = no target."""

    ttft_s: float = inf
    itl_s: float = inf
    """Mean time between tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """What has to be placed. `routing_keys` name its full blocks in prefix order."""

    request_id: RequestId
    model: str
    routing_keys: Sequence[RoutingKey]
    prompt_tokens: int
    max_tokens: int
    bypass_cache: bool = False
    targets: Targets = Targets()
    priority: int = 0
    """Larger goes first."""
    tenant: str = ""
    """Whose fair share it counts against."""
    session: str = ""
    """Requests of one session share a growing prefix; empty = of none."""


@dataclass(slots=True)
class TierTokens:
    """Prompt tokens that a worker need not compute, by where their KV is."""

    device: int = 0
    host: int = 0
    disk: int = 0
    remote: int = 0
    """Held by other nodes beyond this worker's own prefix. Reported, not credited: a node cannot
    pull yet."""

    @property
    def usable(self) -> int:
        return self.device + self.host + self.disk


@dataclass(slots=True)
class Candidate:
    """A worker that could prefill, and the terms of its time to first token, in seconds."""

    member: Member
    queue_s: float
    load_s: float
    prefill_s: float
    tokens: TierTokens
    routed: int
    """Requests given to it so far: of two equal workers, the one given less is also less known."""

    @property
    def ttft_s(self) -> float:
        return self.queue_s + self.load_s + self.prefill_s


@dataclass(slots=True)
class DecodeCandidate:
    """A worker that could decode."""

    member: Member
    itl_s: float
    """Predicted time between tokens once the request has joined its batch."""
    join_near_s: float
    """To take over the prompt from a prefill worker of the same node: load its blocks."""
    join_far_s: float
    """To take it over from anywhere else: load what is here, compute the rest."""
    batch: int
    """Sequences in that batch, this one included."""
    fits: bool
    """Whether the sequence's blocks fit beside those of the others."""


@dataclass(frozen=True, slots=True)
class Placement:
    prefill: Member | None
    """None: the decode worker prefills by itself."""
    decode: Member
    chosen: Candidate
    candidates: Sequence[Candidate] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a placed request went; figures that are not known are 0."""

    request_id: RequestId
    ttft_s: float = 0.0
    prefill_compute_s: float = 0.0
    computed_tokens: int = 0
    itl_mean_s: float = 0.0
    output_tokens: int = 0
    failed: bool = False


@dataclass(frozen=True, slots=True)
class ConductorStatistics:
    members: int
    indexed_blocks: int
    """Distinct blocks known to be somewhere."""
    in_flight: int
    routed: int
    completed: int
    failed: int
    ttft_error: float
    """Moving average of |predicted - observed| / observed; 0 before the first observation."""
