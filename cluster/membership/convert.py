"""Between the messages of conductor.proto and the values of `cluster.conductor.types`.

Everything that arrives is checked here; errors name the field.
"""

from __future__ import annotations

import math

from cluster.conductor.routing_keys import KEY_BYTES, RoutingKeys
from cluster.conductor.types import (
    Load,
    Member,
    MemberStatus,
    ModelInfo,
    Outcome,
    Request,
    Role,
    Targets,
    TierTokens,
)
from cluster.membership.reservations import LIFETIME_MAX_S, LIFETIME_S
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import MemberId, NodeId, RequestId
from kvstore.core.layout import KVLayout
from kvstore.wire.v1 import block_pb2

_ROOT_BYTES = 32
_ID_CHARACTERS_MAX = 256
_TEXT_CHARACTERS_MAX = 4096
_KEYS_MAX = 1 << 17
"""In one request: 2 M tokens where blocks have 16."""
_LAYERS_MAX = 4096

_ROLES = {Role.NODE: pb.ROLE_NODE, Role.PREFILL: pb.ROLE_PREFILL, Role.DECODE: pb.ROLE_DECODE}


def member_from(message: pb.Member) -> Member:
    member_id = identifier("member_id", message.member_id)
    if message.role not in _ROLES.values():
        raise InvalidArgumentError("role must be node, prefill or decode")
    role = Role(message.role)
    if not message.grpc_address:
        raise InvalidArgumentError("grpc_address must be host:port of the member's service")
    for name in ("grpc_address", "event_endpoint", "replay_endpoint", "zone"):
        _check_text(name, getattr(message, name))
    if bool(message.event_endpoint) != bool(message.replay_endpoint):
        raise InvalidArgumentError("event_endpoint and replay_endpoint come together or not at all")
    node_id = message.node_id
    if role is Role.NODE:
        node_id = identifier("node_id", node_id)
    elif not message.HasField("model"):
        raise InvalidArgumentError("model must be set for a worker")
    return Member(
        member_id=MemberId(member_id),
        role=role,
        grpc_address=message.grpc_address,
        node_id=NodeId(node_id),
        event_endpoint=message.event_endpoint,
        replay_endpoint=message.replay_endpoint,
        model=None if role is Role.NODE else _model_from(message.model),
        zone=message.zone,
    )


def member_to(member: Member) -> pb.Member:
    message = pb.Member(
        member_id=member.member_id,
        role=_ROLES[member.role],
        grpc_address=member.grpc_address,
        node_id=member.node_id,
        event_endpoint=member.event_endpoint,
        replay_endpoint=member.replay_endpoint,
        zone=member.zone,
    )
    if member.model is not None:
        message.model.CopyFrom(_model_to(member.model))
    return message


def load_to(load: Load) -> pb.Load:
    return pb.Load(
        running=load.running,
        waiting=load.waiting,
        waiting_tokens=load.waiting_tokens,
        free_blocks=load.free_blocks,
        total_blocks=load.total_blocks,
    )


def load_from(message: pb.Load) -> Load:
    return Load(
        message.running,
        message.waiting,
        message.waiting_tokens,
        message.free_blocks,
        message.total_blocks,
    )


def status_to(status: MemberStatus) -> pb.MemberStatus:
    return pb.MemberStatus(
        member=member_to(status.member),
        load=load_to(status.load),
        draining=status.draining,
        silent_s=status.silent_s,
        indexed_blocks=status.indexed_blocks,
        ttft_error=status.ttft_error,
        itl_error=status.itl_error,
    )


def request_from(message: pb.RouteRequest, tenant: str) -> Request:
    """On behalf of `tenant`."""
    if len(message.routing_keys) > _KEYS_MAX * KEY_BYTES:
        raise InvalidArgumentError(
            f"routing_keys: {len(message.routing_keys) // KEY_BYTES} keys, at most {_KEYS_MAX};"
            " send the first ones"
        )
    if len(message.routing_keys) % KEY_BYTES:
        raise InvalidArgumentError(
            f"routing_keys: {len(message.routing_keys)} bytes are no whole number of"
            f" {KEY_BYTES}-byte keys"
        )
    return Request(
        request_id=RequestId(identifier("request_id", message.request_id)),
        model=identifier("model", message.model),
        routing_keys=RoutingKeys(message.routing_keys),
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        bypass_cache=message.bypass_cache,
        priority=message.priority,
        targets=Targets(
            ttft_s=message.ttft_target_s or math.inf, itl_s=message.itl_target_s or math.inf
        ),
        tenant=tenant,
        session=message.session,
    )


def lifetime_from(lifetime_ms: int) -> float:
    """Of a reservation, in seconds."""
    if lifetime_ms > LIFETIME_MAX_S * 1000:
        raise InvalidArgumentError(
            f"lifetime_ms: {lifetime_ms}, at most {LIFETIME_MAX_S * 1000:.0f}; reserve anew when it"
            " is over"
        )
    return lifetime_ms / 1000 or LIFETIME_S


def outcome_from(message: pb.CompleteRequest, request_id: RequestId) -> Outcome:
    """Of that request, whatever the message calls it."""
    for name in ("ttft_s", "prefill_compute_s", "itl_mean_s", "queue_s"):
        if not 0 <= getattr(message, name) < float("inf"):
            raise InvalidArgumentError(f"{name} must be a number of seconds, at least 0")
    return Outcome(
        request_id=request_id,
        ttft_s=message.ttft_s,
        prefill_compute_s=message.prefill_compute_s,
        computed_tokens=message.computed_tokens,
        itl_mean_s=message.itl_mean_s,
        output_tokens=message.output_tokens,
        failed=message.failed,
        queue_s=message.queue_s,
        hits=_hits_from(message.hits) if message.HasField("hits") else None,
    )


def layout_to(layout: KVLayout) -> block_pb2.KVLayout:
    return block_pb2.KVLayout(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_size_tokens=layout.block_size_tokens,
        dtype=layout.dtype,
        layers=layout.layers,
    )


def _layout_from(message: block_pb2.KVLayout) -> KVLayout:
    return KVLayout(
        message.num_layers,
        message.num_kv_heads,
        message.head_dim,
        message.block_size_tokens,
        message.dtype,
        layers=tuple(message.layers) or None,
    )


def _model_from(message: pb.ModelInfo) -> ModelInfo:
    if len(message.identity_root) != _ROOT_BYTES:
        raise InvalidArgumentError(
            f"model.identity_root must have {_ROOT_BYTES} bytes, got {len(message.identity_root)}"
        )
    _check_text("model.path", message.path)
    if len(message.layout.layers) > _LAYERS_MAX:
        raise InvalidArgumentError(f"model.layout.layers: more than {_LAYERS_MAX}")
    return ModelInfo(
        name=identifier("model.name", message.name),
        identity_root=message.identity_root,
        layout=_layout_from(message.layout),
        max_context_tokens=message.max_context_tokens,
        path=message.path,
    )


def _model_to(model: ModelInfo) -> pb.ModelInfo:
    return pb.ModelInfo(
        name=model.name,
        identity_root=model.identity_root,
        layout=layout_to(model.layout),
        max_context_tokens=model.max_context_tokens,
        path=model.path,
    )


def _hits_from(message: pb.HitTokens) -> TierTokens:
    return TierTokens(message.device, message.host, message.disk, message.remote)


def identifier(field: str, value: str) -> str:
    if not 1 <= len(value) <= _ID_CHARACTERS_MAX:
        raise InvalidArgumentError(
            f"{field} must have 1 to {_ID_CHARACTERS_MAX} characters, got {len(value)}"
        )
    return value


def _check_text(field: str, value: str) -> None:
    if len(value) > _TEXT_CHARACTERS_MAX:
        raise InvalidArgumentError(
            f"{field} must have at most {_TEXT_CHARACTERS_MAX} characters, got {len(value)}"
        )
