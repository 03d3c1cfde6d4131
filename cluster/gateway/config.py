"""Settings of the gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kvstore.transports.security.config import ClientSecurity


class TenantConfig(BaseModel):
    """What one tenant may do, and with whom it shares blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache_salt: str | None = Field(None, max_length=256)
    """Tenants of one salt share blocks; None = the tenant's own name."""
    requests_per_min: int | None = Field(None, ge=1)
    tokens_per_min: int | None = Field(None, ge=1)


class GatewayConfig(BaseModel):
    """The OpenAI-compatible front."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 = any free one.")
    conductor: str = Field("127.0.0.1:0", description="Address of the conductor.")
    request_timeout_s: float = Field(600.0, gt=0, description="Longest time a request may take.")
    max_body_bytes: int = Field(8 << 20, gt=0, description="Largest request body.")
    max_in_flight: int = Field(256, ge=1, description="Requests at a time; more are answered 429.")
    clients: Path | None = Field(
        None, description="TOML file of the API keys that are let in, and as which tenant."
    )
    tls_cert: Path | None = Field(None, description="PEM certificate (chain); turns TLS on.")
    tls_key: Path | None = Field(None, description="PEM private key of `tls_cert`, mode 0600.")
    allow_insecure: bool = Field(
        False, description="Listen beyond loopback without API keys or without TLS."
    )
    tenants: dict[str, TenantConfig] = Field(
        default_factory=dict,
        description="For each tenant: `cache_salt`, `requests_per_min`, `tokens_per_min`.",
    )
    credentials: ClientSecurity = ClientSecurity()
