"""What the conductor knows of members and requests, and what it answers. Frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    zone: str = ""
    """Part of the network within which transfers are cheaper than across."""


@dataclass(frozen=True, slots=True)
class Load:
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    free_blocks: int = 0
    total_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Targets:
    """What the answer has to keep to be good; infinite = no target."""

    ttft_s: float = inf
    itl_s: float = inf
    """Mean time between tokens."""


NO_TARGETS = Targets()


@dataclass(frozen=True, slots=True)
class Request:
    """What has to be placed. `routing_keys` name its full blocks in prefix order."""

    request_id: RequestId
    model: str
    routing_keys: Sequence[RoutingKey]
    prompt_tokens: int
    max_tokens: int
    bypass_cache: bool = False
    targets: Targets = NO_TARGETS
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
    """Held by another node beyond this worker's own prefix, and pulled if that is sooner than
    computing it."""

    @property
    def usable(self) -> int:
        return self.device + self.host + self.disk


@dataclass(slots=True)
class Candidate:
    """A worker that could prefill, and the terms of its time to first token, in seconds."""

    member: Member
    queue_s: float
    load_s: float
    """From its own node, into the device tier."""
    pull_s: float
    """From another node."""
    prefill_s: float
    tokens: TierTokens
    cached_tokens: int
    """Of those it would use so many, and compute the rest: more would take longer."""
    routed: int
    """Requests given to it so far."""

    @property
    def ready_s(self) -> float:
        return self.load_s + self.pull_s + self.prefill_s

    @property
    def ttft_s(self) -> float:
        return self.queue_s + self.ready_s


@dataclass(slots=True)
class DecodeCandidate:
    """A worker that could decode. Times between tokens; and what it takes to get the prompt."""

    member: Member
    itl_s: float
    """Once the request has joined its batch."""
    itl_alone_s: float
    """The same, if this worker computes the prompt, too."""
    itl_before_s: float
    """Without the request."""
    join_near_s: float
    """From a prefill worker of the same node."""
    join_zone_s: float
    """From another node of its zone."""
    join_far_s: float
    """From another zone."""
    join_cold_s: float
    """From a worker without a node."""
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
    """The terms of whoever computes the prompt."""
    itl_s: float
    """Predicted time between tokens at the decode worker."""
    join_s: float
    """Predicted time for it to take the prompt over."""
    candidates: Sequence[Candidate]
    """Those that could have computed it in the role of the chosen one: the 8 with the shortest time
    to first token. Made when asked for; `Conductor.explain` has all."""


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
    queue_s: float = 0.0
    """That it waited at the worker before anything was computed for it."""
    hits: TierTokens | None = None
    """Prompt tokens that were not computed, by where their KV came from."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request was placed so, or not at all. Candidates are in the order of the rows that the
    policy saw."""

    request: Request
    decided_s: float
    policy: str
    prefills: Sequence[Candidate]
    """Prefill workers; none where the decode workers had to do it all."""
    alone: Sequence[Candidate]
    """Decode workers, were they to compute the prompt by themselves."""
    decodes: Sequence[DecodeCandidate]
    prefill: MemberId | None
    decode: MemberId
    """Chosen, even if the request was then refused."""
    refused: str = ""
    """Why it was; empty: it was not."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    member: Member
    load: Load
    draining: bool
    silent_s: float
    indexed_blocks: int
    ttft_error: float = 0.0
    """As in `ConductorStatistics`, of requests whose prompt it computed."""
    itl_error: float = 0.0
    """The same of the time between tokens, of requests that it decoded."""


@dataclass(frozen=True, slots=True)
class ConductorStatistics:
    members: int
    indexed_blocks: int
    """Distinct blocks known to be somewhere."""
    in_flight: int
    waiting: int
    routed: int
    completed: int
    failed: int
    refused: int
    """Not placed, for their targets could not be met."""
    ttft_error: float
    """Moving average of |predicted - observed| / observed; 0 before the first observation."""
    itl_error: float
    late_events: int = 0
    """Dropped: of members that were gone by then, or registered anew."""
    shed_blocks: int = 0
    """Forgotten by the index for want of room."""
