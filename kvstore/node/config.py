"""Settings of a store node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from kvstore.eviction.registry import PolicyName

Fraction = Annotated[float, Field(gt=0, le=1)]


class NodeConfig(BaseModel):
    """One store node: the host tier and disk tier of one host, and where it listens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_id: str = Field("node-0", description="Name of the node; unique in the cluster.")
    host: ByteSize = Field(ByteSize(1 << 30), description="Size of the host tier (shared memory).")
    disk: ByteSize = Field(ByteSize(0), description="Size of the disk tier; 0 = no disk tier.")
    disk_path: Path | None = Field(None, description="Folder of the disk tier.")
    arena_folder: Path = Field(
        Path("/dev/shm"),  # noqa: S108
        description="Where the shared arena file is made.",
    )
    high_watermark: Fraction = Field(0.95, description="Host tier use that starts eviction.")
    low_watermark: Fraction = Field(0.90, description="Host tier use at which eviction ends.")
    eviction: PolicyName = Field("lru", description="Which blocks leave the host tier first.")
    lease_ttl_ms: int = Field(
        10_000, gt=0, description="Time after which a silent client loses its rights."
    )
    zmq_endpoint: str = Field(
        "tcp://127.0.0.1:0", description="ZeroMQ endpoint of the verbs (ipc:// or tcp://)."
    )
    grpc_address: str = Field("127.0.0.1:0", description="Address of the gRPC service.")
    event_endpoint: str = Field(
        "tcp://127.0.0.1:0", description="ZeroMQ PUB endpoint of the block events."
    )
    replay_endpoint: str = Field(
        "tcp://127.0.0.1:0", description="ZeroMQ endpoint that replays missed events."
    )
    conductor: str | None = Field(None, description="Address of the conductor to register with.")
