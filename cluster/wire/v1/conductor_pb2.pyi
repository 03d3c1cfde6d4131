from kvstore.wire.v1 import block_pb2 as _block_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_NODE: _ClassVar[Role]
    ROLE_PREFILL: _ClassVar[Role]
    ROLE_DECODE: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_NODE: Role
ROLE_PREFILL: Role
ROLE_DECODE: Role

class ModelInfo(_message.Message):
    __slots__ = ("name", "identity_root", "layout", "max_context_tokens", "path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_ROOT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    identity_root: bytes
    layout: _block_pb2.KVLayout
    max_context_tokens: int
    path: str
    def __init__(self, name: _Optional[str] = ..., identity_root: _Optional[bytes] = ..., layout: _Optional[_Union[_block_pb2.KVLayout, _Mapping]] = ..., max_context_tokens: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("member_id", "role", "grpc_address", "event_endpoint", "replay_endpoint", "node_id", "model", "zone")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EVENT_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    REPLAY_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    role: Role
    grpc_address: str
    event_endpoint: str
    replay_endpoint: str
    node_id: str
    model: ModelInfo
    zone: str
    def __init__(self, member_id: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., grpc_address: _Optional[str] = ..., event_endpoint: _Optional[str] = ..., replay_endpoint: _Optional[str] = ..., node_id: _Optional[str] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., zone: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "waiting_tokens", "free_blocks", "total_blocks")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    waiting_tokens: int
    free_blocks: int
    total_blocks: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_tokens: _Optional[int] = ..., free_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("member", "epoch")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    member: Member
    epoch: int
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("ttl_ms",)
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    ttl_ms: int
    def __init__(self, ttl_ms: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("member_id", "epoch", "load")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    epoch: int
    load: Load
    def __init__(self, member_id: _Optional[str] = ..., epoch: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("member_id",)
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    def __init__(self, member_id: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MemberStatus(_message.Message):
    __slots__ = ("member", "load", "draining", "silent_s", "indexed_blocks", "ttft_error", "itl_error")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    INDEXED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TTFT_ERROR_FIELD_NUMBER: _ClassVar[int]
    ITL_ERROR_FIELD_NUMBER: _ClassVar[int]
    member: Member
    load: Load
    draining: bool
    silent_s: float
    indexed_blocks: int
    ttft_error: float
    itl_error: float
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., draining: _Optional[bool] = ..., silent_s: _Optional[float] = ..., indexed_blocks: _Optional[int] = ..., ttft_error: _Optional[float] = ..., itl_error: _Optional[float] = ...) -> None: ...

class ListMembersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMembersResponse(_message.Message):
    __slots__ = ("members",)
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[MemberStatus]
    def __init__(self, members: _Optional[_Iterable[_Union[MemberStatus, _Mapping]]] = ...) -> None: ...

class RouteRequest(_message.Message):
    __slots__ = ("request_id", "model", "routing_keys", "prompt_tokens", "max_tokens", "bypass_cache", "priority", "ttft_target_s", "itl_target_s", "tenant", "session")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROUTING_KEYS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYPASS_CACHE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TTFT_TARGET_S_FIELD_NUMBER: _ClassVar[int]
    ITL_TARGET_S_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    routing_keys: bytes
    prompt_tokens: int
    max_tokens: int
    bypass_cache: bool
    priority: int
    ttft_target_s: float
    itl_target_s: float
    tenant: str
    session: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., routing_keys: _Optional[bytes] = ..., prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., bypass_cache: _Optional[bool] = ..., priority: _Optional[int] = ..., ttft_target_s: _Optional[float] = ..., itl_target_s: _Optional[float] = ..., tenant: _Optional[str] = ..., session: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("member_id", "ttft_s", "queue_s", "load_s", "prefill_s", "device_tokens", "host_tokens", "disk_tokens", "remote_tokens", "pull_s", "cached_tokens")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REMOTE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PULL_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    ttft_s: float
    queue_s: float
    load_s: float
    prefill_s: float
    device_tokens: int
    host_tokens: int
    disk_tokens: int
    remote_tokens: int
    pull_s: float
    cached_tokens: int
    def __init__(self, member_id: _Optional[str] = ..., ttft_s: _Optional[float] = ..., queue_s: _Optional[float] = ..., load_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., device_tokens: _Optional[int] = ..., host_tokens: _Optional[int] = ..., disk_tokens: _Optional[int] = ..., remote_tokens: _Optional[int] = ..., pull_s: _Optional[float] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("prefill", "decode", "chosen", "candidates", "itl_s", "join_s")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    ITL_S_FIELD_NUMBER: _ClassVar[int]
    JOIN_S_FIELD_NUMBER: _ClassVar[int]
    prefill: Member
    decode: Member
    chosen: Candidate
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    itl_s: float
    join_s: float
    def __init__(self, prefill: _Optional[_Union[Member, _Mapping]] = ..., decode: _Optional[_Union[Member, _Mapping]] = ..., chosen: _Optional[_Union[Candidate, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., itl_s: _Optional[float] = ..., join_s: _Optional[float] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("request_id", "ttft_s", "prefill_compute_s", "computed_tokens", "itl_mean_s", "output_tokens", "failed", "queue_s", "hits")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ITL_MEAN_S_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    ttft_s: float
    prefill_compute_s: float
    computed_tokens: int
    itl_mean_s: float
    output_tokens: int
    failed: bool
    queue_s: float
    hits: HitTokens
    def __init__(self, request_id: _Optional[str] = ..., ttft_s: _Optional[float] = ..., prefill_compute_s: _Optional[float] = ..., computed_tokens: _Optional[int] = ..., itl_mean_s: _Optional[float] = ..., output_tokens: _Optional[int] = ..., failed: _Optional[bool] = ..., queue_s: _Optional[float] = ..., hits: _Optional[_Union[HitTokens, _Mapping]] = ...) -> None: ...

class HitTokens(_message.Message):
    __slots__ = ("device", "host", "disk", "remote")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    device: int
    host: int
    disk: int
    remote: int
    def __init__(self, device: _Optional[int] = ..., host: _Optional[int] = ..., disk: _Optional[int] = ..., remote: _Optional[int] = ...) -> None: ...

class CompleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("request", "lifetime_ms")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_MS_FIELD_NUMBER: _ClassVar[int]
    request: RouteRequest
    lifetime_ms: int
    def __init__(self, request: _Optional[_Union[RouteRequest, _Mapping]] = ..., lifetime_ms: _Optional[int] = ...) -> None: ...

class ReserveResponse(_message.Message):
    __slots__ = ("reservation_id", "placement", "lifetime_ms")
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_MS_FIELD_NUMBER: _ClassVar[int]
    reservation_id: int
    placement: RouteResponse
    lifetime_ms: int
    def __init__(self, reservation_id: _Optional[int] = ..., placement: _Optional[_Union[RouteResponse, _Mapping]] = ..., lifetime_ms: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("reservation_id", "outcome")
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    reservation_id: int
    outcome: CompleteRequest
    def __init__(self, reservation_id: _Optional[int] = ..., outcome: _Optional[_Union[CompleteRequest, _Mapping]] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class DecodeCandidate(_message.Message):
    __slots__ = ("member_id", "itl_s", "itl_before_s", "join_near_s", "join_zone_s", "join_far_s", "join_cold_s", "batch", "fits")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    ITL_S_FIELD_NUMBER: _ClassVar[int]
    ITL_BEFORE_S_FIELD_NUMBER: _ClassVar[int]
    JOIN_NEAR_S_FIELD_NUMBER: _ClassVar[int]
    JOIN_ZONE_S_FIELD_NUMBER: _ClassVar[int]
    JOIN_FAR_S_FIELD_NUMBER: _ClassVar[int]
    JOIN_COLD_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    itl_s: float
    itl_before_s: float
    join_near_s: float
    join_zone_s: float
    join_far_s: float
    join_cold_s: float
    batch: int
    fits: bool
    def __init__(self, member_id: _Optional[str] = ..., itl_s: _Optional[float] = ..., itl_before_s: _Optional[float] = ..., join_near_s: _Optional[float] = ..., join_zone_s: _Optional[float] = ..., join_far_s: _Optional[float] = ..., join_cold_s: _Optional[float] = ..., batch: _Optional[int] = ..., fits: _Optional[bool] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "model", "policy", "age_s", "prompt_tokens", "prefills", "alone", "decodes", "prefill", "decode", "refused")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    DECODES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    policy: str
    age_s: float
    prompt_tokens: int
    prefills: _containers.RepeatedCompositeFieldContainer[Candidate]
    alone: _containers.RepeatedCompositeFieldContainer[Candidate]
    decodes: _containers.RepeatedCompositeFieldContainer[DecodeCandidate]
    prefill: str
    decode: str
    refused: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., policy: _Optional[str] = ..., age_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., prefills: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., alone: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., decodes: _Optional[_Iterable[_Union[DecodeCandidate, _Mapping]]] = ..., prefill: _Optional[str] = ..., decode: _Optional[str] = ..., refused: _Optional[str] = ...) -> None: ...
