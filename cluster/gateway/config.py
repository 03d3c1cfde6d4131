"""Settings of the gateway."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kvstore.transports.security.config import ClientSecurity


class GatewayConfig(BaseModel):
    """The OpenAI-compatible front."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 = any free one.")
    conductor: str = Field("127.0.0.1:0", description="Address of the conductor.")
    request_timeout_s: float = Field(600.0, gt=0, description="Longest time a request may take.")
    max_body_bytes: int = Field(8 << 20, gt=0, description="Largest request body.")
    max_in_flight: int = Field(256, ge=1, description="Requests at a time; more are answered 429.")
    credentials: ClientSecurity = ClientSecurity()
