"""Settings of a server's and of a client's credentials. Files are read when they are used."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ServerSecurity(BaseModel):
    """What a server shows, and whom it lets in. Nothing set: it is open to whoever reaches it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tls_cert: Path | None = Field(
        None, description="PEM certificate (chain) of the gRPC services; turns TLS on."
    )
    tls_key: Path | None = Field(None, description="PEM private key of `tls_cert`, mode 0600.")
    tls_client_ca: Path | None = Field(
        None, description="PEM CA whose certificates gRPC clients must show (mTLS)."
    )
    clients: Path | None = Field(
        None, description="TOML file of the tokens and CURVE keys that are let in, and as whom."
    )
    curve_secret_key: Path | None = Field(
        None, description="Secret CURVE key of the ZeroMQ sockets, mode 0600; turns CURVE on."
    )


class ClientSecurity(BaseModel):
    """What a client shows to servers, and by what it knows them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: Path | None = Field(
        None, description="PEM CA that signed the servers' certificates; turns TLS on."
    )
    cert: Path | None = Field(None, description="PEM certificate to show to servers (mTLS).")
    key: Path | None = Field(None, description="PEM private key of `cert`, mode 0600.")
    token_file: Path | None = Field(
        None, description="File with the bearer token for gRPC servers, mode 0600; needs `ca`."
    )
    curve_server_key: Path | None = Field(
        None, description="Public CURVE key of the servers; turns CURVE on for tcp:// endpoints."
    )
    curve_secret_key: Path | None = Field(
        None, description="Secret CURVE key of this client, mode 0600."
    )
