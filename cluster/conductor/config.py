"""Settings of the conductor."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.conductor.admission import AdmissionMode
from kvstore.transports.security.config import ClientSecurity, ServerSecurity

PolicyName = Literal[
    "joint",
    "global-cache-aware",
    "local-cache-aware",
    "session-sticky",
    "least-loaded",
    "round-robin",
    "random",
]


class ConductorConfig(BaseModel):
    """The global scheduler."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("conductor", min_length=1, description="Name of its actor, under Ray.")
    grpc_address: str = Field("127.0.0.1:0", description="Address of the gRPC service.")
    member_ttl_ms: int = Field(
        5_000, gt=0, description="A member silent for this long is forgotten."
    )
    policy: PolicyName = Field("joint", description="Placement policy.")
    policy_seed: int = Field(0, ge=0, description="Of the policy `random`.")
    balancing_threshold: float = Field(
        1.5,
        ge=1,
        description="Of the policy `global-cache-aware`: pull a prefix that is so many times longer"
        " than the own one.",
    )
    admission: AdmissionMode = Field(
        "predictive", description="When requests are refused that would miss their targets."
    )
    ttft_target_ms: float | None = Field(
        None, gt=0, description="Time to first token of requests that name no target."
    )
    itl_target_ms: float | None = Field(
        None, gt=0, description="Mean time between tokens of requests that name no target."
    )
    queue_max: int = Field(
        1024, ge=0, description="So many requests wait when all workers are busy; 0 = none does."
    )
    queue_wait_ms: int = Field(
        2_000, gt=0, description="A request that has waited this long is refused."
    )
    queue_ahead_ms: int = Field(
        1_000, ge=0, description="Workers are given work for so long ahead before requests wait."
    )
    cross_zone_factor: float = Field(
        4.0, ge=1, description="A transfer between zones takes so many times longer than in one."
    )
    explained_max: int = Field(
        128, gt=0, description="So many of the last decisions can be explained."
    )
    snapshot: Path | None = Field(
        None, description="File of what is kept over a restart; none = all is learned anew."
    )
    snapshot_every_ms: int = Field(10_000, gt=0, description="How often it is written.")
    allow_insecure: bool = Field(
        False, description="Listen beyond this host without asking who comes: see docs/security.md."
    )
    security: ServerSecurity = ServerSecurity()
    credentials: ClientSecurity = ClientSecurity()
