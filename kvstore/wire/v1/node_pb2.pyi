from kvstore.wire.v1 import block_pb2 as _block_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReserveOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESERVE_OUTCOME_UNSPECIFIED: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_RESERVED: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_EXISTS: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_PENDING: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_NO_SPACE: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_OVER_QUOTA: _ClassVar[ReserveOutcome]
RESERVE_OUTCOME_UNSPECIFIED: ReserveOutcome
RESERVE_OUTCOME_RESERVED: ReserveOutcome
RESERVE_OUTCOME_EXISTS: ReserveOutcome
RESERVE_OUTCOME_PENDING: ReserveOutcome
RESERVE_OUTCOME_NO_SPACE: ReserveOutcome
RESERVE_OUTCOME_OVER_QUOTA: ReserveOutcome

class OpenSessionRequest(_message.Message):
    __slots__ = ("client_name", "pid", "process_start", "layouts", "tenant", "peer")
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PROCESS_START_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    client_name: str
    pid: int
    process_start: int
    layouts: _containers.RepeatedCompositeFieldContainer[_block_pb2.KVLayout]
    tenant: str
    peer: bool
    def __init__(self, client_name: _Optional[str] = ..., pid: _Optional[int] = ..., process_start: _Optional[int] = ..., layouts: _Optional[_Iterable[_Union[_block_pb2.KVLayout, _Mapping]]] = ..., tenant: _Optional[str] = ..., peer: _Optional[bool] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session_id", "node_id", "boot_id", "arena_path", "arena_bytes", "lease_ttl_ms", "grpc_port", "bulk_port", "local_endpoint")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    ARENA_PATH_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    GRPC_PORT_FIELD_NUMBER: _ClassVar[int]
    BULK_PORT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    node_id: str
    boot_id: int
    arena_path: str
    arena_bytes: int
    lease_ttl_ms: int
    grpc_port: int
    bulk_port: int
    local_endpoint: str
    def __init__(self, session_id: _Optional[int] = ..., node_id: _Optional[str] = ..., boot_id: _Optional[int] = ..., arena_path: _Optional[str] = ..., arena_bytes: _Optional[int] = ..., lease_ttl_ms: _Optional[int] = ..., grpc_port: _Optional[int] = ..., bulk_port: _Optional[int] = ..., local_endpoint: _Optional[str] = ...) -> None: ...

class KeepAliveRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    def __init__(self, session_id: _Optional[int] = ...) -> None: ...

class KeepAliveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    def __init__(self, session_id: _Optional[int] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MatchRequest(_message.Message):
    __slots__ = ("keys", "session_id", "remote")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    keys: _block_pb2.BlockKeys
    session_id: int
    remote: bool
    def __init__(self, keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., session_id: _Optional[int] = ..., remote: _Optional[bool] = ...) -> None: ...

class MatchResponse(_message.Message):
    __slots__ = ("num_matched", "tiers", "nodes", "node_indices")
    NUM_MATCHED_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    NODE_INDICES_FIELD_NUMBER: _ClassVar[int]
    num_matched: int
    tiers: bytes
    nodes: _containers.RepeatedScalarFieldContainer[str]
    node_indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, num_matched: _Optional[int] = ..., tiers: _Optional[bytes] = ..., nodes: _Optional[_Iterable[str]] = ..., node_indices: _Optional[_Iterable[int]] = ...) -> None: ...

class Retention(_message.Message):
    __slots__ = ("first", "last", "priority", "duration_ms")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    priority: int
    duration_ms: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ..., priority: _Optional[int] = ..., duration_ms: _Optional[int] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("session_id", "keys", "block_bytes", "reservation_id", "retention")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    keys: _block_pb2.BlockKeys
    block_bytes: int
    reservation_id: int
    retention: _containers.RepeatedCompositeFieldContainer[Retention]
    def __init__(self, session_id: _Optional[int] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., block_bytes: _Optional[int] = ..., reservation_id: _Optional[int] = ..., retention: _Optional[_Iterable[_Union[Retention, _Mapping]]] = ...) -> None: ...

class ReserveResponse(_message.Message):
    __slots__ = ("reservation_id", "ttl_ms", "outcomes", "offsets")
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    reservation_id: int
    ttl_ms: int
    outcomes: bytes
    offsets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, reservation_id: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., outcomes: _Optional[bytes] = ..., offsets: _Optional[_Iterable[int]] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("session_id", "reservation_id", "indices", "checksums", "lengths_bytes")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_BYTES_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    reservation_id: int
    indices: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    lengths_bytes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[int] = ..., reservation_id: _Optional[int] = ..., indices: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., lengths_bytes: _Optional[_Iterable[int]] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("session_id", "reservation_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    reservation_id: int
    def __init__(self, session_id: _Optional[int] = ..., reservation_id: _Optional[int] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("session_id", "keys", "wait_ms", "streaming", "local")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    keys: _block_pb2.BlockKeys
    wait_ms: int
    streaming: bool
    local: bool
    def __init__(self, session_id: _Optional[int] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., wait_ms: _Optional[int] = ..., streaming: _Optional[bool] = ..., local: _Optional[bool] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("lease_id", "ttl_ms", "tiers", "miss_reasons", "offsets", "generations", "lengths_bytes", "checksums", "pending")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    MISS_REASONS_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    ttl_ms: int
    tiers: bytes
    miss_reasons: bytes
    offsets: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    lengths_bytes: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    pending: bytes
    def __init__(self, lease_id: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., tiers: _Optional[bytes] = ..., miss_reasons: _Optional[bytes] = ..., offsets: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ..., lengths_bytes: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., pending: _Optional[bytes] = ...) -> None: ...

class ConfirmRequest(_message.Message):
    __slots__ = ("session_id", "lease_id", "wait_ms")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    lease_id: int
    wait_ms: int
    def __init__(self, session_id: _Optional[int] = ..., lease_id: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class ConfirmResponse(_message.Message):
    __slots__ = ("miss_reasons", "checksums")
    MISS_REASONS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    miss_reasons: bytes
    checksums: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, miss_reasons: _Optional[bytes] = ..., checksums: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefetchRequest(_message.Message):
    __slots__ = ("session_id", "keys", "local")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    keys: _block_pb2.BlockKeys
    local: bool
    def __init__(self, session_id: _Optional[int] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., local: _Optional[bool] = ...) -> None: ...

class PrefetchResponse(_message.Message):
    __slots__ = ("num_resident", "num_started")
    NUM_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    NUM_STARTED_FIELD_NUMBER: _ClassVar[int]
    num_resident: int
    num_started: int
    def __init__(self, num_resident: _Optional[int] = ..., num_started: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("session_id", "keys", "ttl_ms", "wait_ms")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    keys: _block_pb2.BlockKeys
    ttl_ms: int
    wait_ms: int
    def __init__(self, session_id: _Optional[int] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., ttl_ms: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ("miss_reasons",)
    MISS_REASONS_FIELD_NUMBER: _ClassVar[int]
    miss_reasons: bytes
    def __init__(self, miss_reasons: _Optional[bytes] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("session_id", "keys")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    keys: _block_pb2.BlockKeys
    def __init__(self, session_id: _Optional[int] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ...) -> None: ...

class UnpinResponse(_message.Message):
    __slots__ = ("num_unpinned",)
    NUM_UNPINNED_FIELD_NUMBER: _ClassVar[int]
    num_unpinned: int
    def __init__(self, num_unpinned: _Optional[int] = ...) -> None: ...

class RetainRequest(_message.Message):
    __slots__ = ("session_id", "keys", "retention")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    keys: _block_pb2.BlockKeys
    retention: _containers.RepeatedCompositeFieldContainer[Retention]
    def __init__(self, session_id: _Optional[int] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., retention: _Optional[_Iterable[_Union[Retention, _Mapping]]] = ...) -> None: ...

class RetainResponse(_message.Message):
    __slots__ = ("num_retained",)
    NUM_RETAINED_FIELD_NUMBER: _ClassVar[int]
    num_retained: int
    def __init__(self, num_retained: _Optional[int] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("session_id", "keys")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    keys: _block_pb2.BlockKeys
    def __init__(self, session_id: _Optional[int] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("num_removed",)
    NUM_REMOVED_FIELD_NUMBER: _ClassVar[int]
    num_removed: int
    def __init__(self, num_removed: _Optional[int] = ...) -> None: ...

class ClearRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    def __init__(self, session_id: _Optional[int] = ...) -> None: ...

class ClearResponse(_message.Message):
    __slots__ = ("num_removed",)
    NUM_REMOVED_FIELD_NUMBER: _ClassVar[int]
    num_removed: int
    def __init__(self, num_removed: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("session_id", "lease_ids")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[int] = ..., lease_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("session_id", "lease_id", "indices")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    lease_id: int
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[int] = ..., lease_id: _Optional[int] = ..., indices: _Optional[_Iterable[int]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("num_dropped",)
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    num_dropped: int
    def __init__(self, num_dropped: _Optional[int] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("session_id", "reservation_id", "index", "start_byte", "data")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    START_BYTE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    reservation_id: int
    index: int
    start_byte: int
    data: bytes
    def __init__(self, session_id: _Optional[int] = ..., reservation_id: _Optional[int] = ..., index: _Optional[int] = ..., start_byte: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WriteResponse(_message.Message):
    __slots__ = ("bytes_written",)
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    bytes_written: int
    def __init__(self, bytes_written: _Optional[int] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("session_id", "lease_id", "indices")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    lease_id: int
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[int] = ..., lease_id: _Optional[int] = ..., indices: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("index", "start_byte", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    START_BYTE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    start_byte: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., start_byte: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class TierStatistics(_message.Message):
    __slots__ = ("tier", "capacity_bytes", "used_bytes", "blocks", "hits", "evictions", "corruptions", "errors")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    CORRUPTIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    capacity_bytes: int
    used_bytes: int
    blocks: int
    hits: int
    evictions: int
    corruptions: int
    errors: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., blocks: _Optional[int] = ..., hits: _Optional[int] = ..., evictions: _Optional[int] = ..., corruptions: _Optional[int] = ..., errors: _Optional[int] = ...) -> None: ...

class MissCount(_message.Message):
    __slots__ = ("reason", "blocks")
    REASON_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    reason: _block_pb2.MissReason
    blocks: int
    def __init__(self, reason: _Optional[_Union[_block_pb2.MissReason, str]] = ..., blocks: _Optional[int] = ...) -> None: ...

class StatisticsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatisticsResponse(_message.Message):
    __slots__ = ("node_id", "boot_id", "uptime_s", "tiers", "misses", "sessions", "leases", "reservations", "last_event_sequence", "write_through_skipped", "orphaned_blocks", "tenants", "peers", "pinned_bytes", "replica_bytes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    RESERVATIONS_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WRITE_THROUGH_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    ORPHANED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REPLICA_BYTES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    boot_id: int
    uptime_s: float
    tiers: _containers.RepeatedCompositeFieldContainer[TierStatistics]
    misses: _containers.RepeatedCompositeFieldContainer[MissCount]
    sessions: int
    leases: int
    reservations: int
    last_event_sequence: int
    write_through_skipped: int
    orphaned_blocks: int
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatistics]
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatistics]
    pinned_bytes: int
    replica_bytes: int
    def __init__(self, node_id: _Optional[str] = ..., boot_id: _Optional[int] = ..., uptime_s: _Optional[float] = ..., tiers: _Optional[_Iterable[_Union[TierStatistics, _Mapping]]] = ..., misses: _Optional[_Iterable[_Union[MissCount, _Mapping]]] = ..., sessions: _Optional[int] = ..., leases: _Optional[int] = ..., reservations: _Optional[int] = ..., last_event_sequence: _Optional[int] = ..., write_through_skipped: _Optional[int] = ..., orphaned_blocks: _Optional[int] = ..., tenants: _Optional[_Iterable[_Union[TenantStatistics, _Mapping]]] = ..., peers: _Optional[_Iterable[_Union[PeerStatistics, _Mapping]]] = ..., pinned_bytes: _Optional[int] = ..., replica_bytes: _Optional[int] = ...) -> None: ...

class TenantStatistics(_message.Message):
    __slots__ = ("tenant", "host_bytes", "quota_bytes", "over_quota")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    OVER_QUOTA_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    host_bytes: int
    quota_bytes: int
    over_quota: int
    def __init__(self, tenant: _Optional[str] = ..., host_bytes: _Optional[int] = ..., quota_bytes: _Optional[int] = ..., over_quota: _Optional[int] = ...) -> None: ...

class PeerStatistics(_message.Message):
    __slots__ = ("node_id", "transport", "breaker", "bytes_pulled", "blocks_pulled", "failures", "bytes_per_s")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    BYTES_PULLED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_PULLED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    transport: str
    breaker: str
    bytes_pulled: int
    blocks_pulled: int
    failures: int
    bytes_per_s: float
    def __init__(self, node_id: _Optional[str] = ..., transport: _Optional[str] = ..., breaker: _Optional[str] = ..., bytes_pulled: _Optional[int] = ..., blocks_pulled: _Optional[int] = ..., failures: _Optional[int] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: NodeRecord
    def __init__(self, node: _Optional[_Union[NodeRecord, _Mapping]] = ...) -> None: ...

class NodeRecord(_message.Message):
    __slots__ = ("node_id", "boot_id", "host_id", "zmq_endpoint", "grpc_address", "event_endpoint", "replay_endpoint")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    ZMQ_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EVENT_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    REPLAY_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    boot_id: int
    host_id: str
    zmq_endpoint: str
    grpc_address: str
    event_endpoint: str
    replay_endpoint: str
    def __init__(self, node_id: _Optional[str] = ..., boot_id: _Optional[int] = ..., host_id: _Optional[str] = ..., zmq_endpoint: _Optional[str] = ..., grpc_address: _Optional[str] = ..., event_endpoint: _Optional[str] = ..., replay_endpoint: _Optional[str] = ...) -> None: ...
