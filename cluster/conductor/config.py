"""Settings of the conductor."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kvstore.transports.security.config import ClientSecurity, ServerSecurity


class ConductorConfig(BaseModel):
    """The global scheduler."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grpc_address: str = Field("127.0.0.1:0", description="Address of the gRPC service.")
    member_ttl_ms: int = Field(
        5_000, gt=0, description="A member silent for this long is forgotten."
    )
    policy: Literal["joint", "round-robin"] = Field("joint", description="Placement policy.")
    allow_insecure: bool = Field(
        False, description="Listen beyond this host without asking who comes: see docs/security.md."
    )
    security: ServerSecurity = ServerSecurity()
    credentials: ClientSecurity = ClientSecurity()
