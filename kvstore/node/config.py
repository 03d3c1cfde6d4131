"""Settings of a store node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from kvstore.codecs.base import CodecName
from kvstore.eviction.registry import PolicyName
from kvstore.transports.security.config import ClientSecurity, ServerSecurity

Fraction = Annotated[float, Field(gt=0, le=1)]
DiskPolicy = Literal["write-through", "write-back", "selective"]


class NodeConfig(BaseModel):
    """One store node: the host tier and disk tier of one host, and where it listens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_id: str = Field("node-0", description="Name of the node; unique in the cluster.")
    host: ByteSize = Field(ByteSize(1 << 30), description="Size of the host tier (shared memory).")
    disk: ByteSize = Field(ByteSize(0), description="Size of the disk tier; 0 = no disk tier.")
    disk_path: Path | None = Field(None, description="Folder of the disk tier.")
    disk_codec: CodecName = Field(
        "raw",
        description="How blocks are kept on disk. Anything but raw is lossy: more blocks fit, and "
        "text generated from them may differ.",
    )
    arena_folder: Path = Field(
        Path("/dev/shm"),  # noqa: S108
        description="Where the shared arena file is made.",
    )
    high_watermark: Fraction = Field(0.95, description="Host tier use that starts eviction.")
    low_watermark: Fraction = Field(0.90, description="Host tier use at which eviction ends.")
    eviction: PolicyName = Field("adaptive", description="Which blocks leave the host tier first.")
    quotas: dict[str, ByteSize] = Field(
        {},
        description="Bytes of the host tier that a tenant may use, by its name; `*` = every tenant "
        "not named, an empty name = the default tenant.",
    )
    pin_share: Fraction = Field(
        0.5, description="Part of the host tier that may be pinned; never more than that."
    )
    disk_policy: DiskPolicy = Field(
        "write-through",
        description="What goes to disk: every block at once, blocks about to leave the host tier, "
        "or blocks used often enough.",
    )
    disk_min_uses: int = Field(
        2, gt=0, description="`selective`: how often a block is read before it goes to disk."
    )
    lease_ttl_ms: int = Field(
        10_000, gt=0, description="Time after which a silent client loses its rights."
    )
    zmq_endpoint: str = Field(
        "tcp://127.0.0.1:0", description="ZeroMQ endpoint of the verbs (ipc:// or tcp://)."
    )
    grpc_address: str = Field("127.0.0.1:0", description="Address of the gRPC service.")
    bulk_endpoint: str = Field(
        "tcp://127.0.0.1:0",
        description="ZeroMQ endpoint of the bytes of blocks, for clients that cannot map the "
        "arena (tcp://).",
    )
    event_endpoint: str = Field(
        "tcp://127.0.0.1:0", description="ZeroMQ PUB endpoint of the block events."
    )
    replay_endpoint: str = Field(
        "tcp://127.0.0.1:0", description="ZeroMQ endpoint that replays missed events."
    )
    conductor: str | None = Field(None, description="Address of the conductor to register with.")
    directory: str = Field(
        "",
        repr=False,  # it may hold a password
        description="Redis in which nodes find each other's blocks: redis://HOST:PORT/DB, "
        "rediss:// for TLS; none = `peers`.",
    )
    directory_namespace: str = Field(
        "kvstore",
        min_length=1,
        max_length=64,
        description="Keeps clusters apart that share a Redis: what its keys begin with.",
    )
    peers: str = Field(
        "",
        description="Without a directory: verb endpoints of the nodes whose blocks are pulled, "
        "with commas between.",
    )

    hedge_ms: int = Field(
        0,
        ge=0,
        le=60_000,
        description="Time without a block from one node after which a second one that holds it is "
        "asked; 0 = never.",
    )
    replica_share: Fraction = Field(
        0.3, description="Part of the host tier that blocks pulled from other nodes may take up."
    )
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

    @property
    def peer_endpoints(self) -> tuple[str, ...]:
        return tuple(peer.strip() for peer in self.peers.split(",") if peer.strip())
