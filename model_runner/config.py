"""Settings that prefill and decode workers share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kvstore.transports.security.config import ClientSecurity, ServerSecurity


class WorkerConfig(BaseModel):
    """One worker: a model on one device, and the store node of its host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker_id: str = Field("worker-0", description="Name of the worker; unique in the cluster.")
    model: str = Field(description="Folder or hub id of the model (safetensors).")
    served_model_name: str | None = Field(
        None, description="Name in the API; default: last part of `model`."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type of weights and KV."
    )
    device: str = Field("cpu", description='Torch device: "cpu", "cuda", "cuda:1".')
    threads: int | None = Field(
        None, ge=1, description="CPU threads for torch; default: torch's own choice."
    )
    block_size_tokens: int = Field(16, ge=1, description="Tokens in a block.")
    device_blocks: int = Field(
        512,
        ge=2,
        description="Blocks of the device tier; layers with a sliding window take no more of it "
        "than their windows need, beside layers without.",
    )
    max_context_tokens: int | None = Field(
        None, ge=1, description="Longest prompt and answer together; default: the model's."
    )
    max_batch_tokens: int = Field(
        512, ge=1, description="Token budget of one step (chunked prefill)."
    )
    max_running: int = Field(32, ge=1, description="Requests computed at a time.")
    max_waiting: int = Field(256, ge=1, description="Requests that may queue; more are refused.")
    fetch_deadline_s: float = Field(
        2.0, gt=0, description="Longest wait for the store before recomputing."
    )
    node: str | None = Field(
        None, description="ZeroMQ endpoint of the host's store node; none = no store."
    )
    node_id: str = Field("", description="Name of the host's store node.")
    grpc_address: str = Field("127.0.0.1:0", description="Address of the gRPC service.")
    event_endpoint: str = Field(
        "tcp://127.0.0.1:0", description="ZeroMQ PUB endpoint of the block events."
    )
    replay_endpoint: str = Field(
        "tcp://127.0.0.1:0", description="ZeroMQ endpoint that replays missed events."
    )
    metrics_address: str | None = Field(
        None,
        description="Address of the Prometheus metrics, host:port, plain HTTP; none = no metrics.",
    )
    conductor: str | None = Field(None, description="Address of the conductor to register with.")
    advertise_host: str | None = Field(
        None,
        description="Host that others reach this one by, where it listens on all addresses; none "
        "= the host's own address.",
    )
    allow_insecure: bool = Field(
        False, description="Listen beyond this host without asking who comes: see docs/security.md."
    )
    security: ServerSecurity = ServerSecurity()
    credentials: ClientSecurity = ClientSecurity()
