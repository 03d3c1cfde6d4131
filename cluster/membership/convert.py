"""Between the messages of conductor.proto and the values of `cluster.conductor.types`.

Everything that arrives is checked here; errors name the field.
"""

from __future__ import annotations

import numpy as np

from cluster.conductor.types import (
    Candidate,
    Load,
    Member,
    MemberStatus,
    ModelInfo,
    Outcome,
    Placement,
    Request,
    Role,
)
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import MemberId, NodeId, RequestId, RoutingKey
from kvstore.core.layout import KVLayout
from kvstore.wire.v1 import block_pb2

_ROUTING_KEY_BYTES = 8
_ROOT_BYTES = 32
_ID_CHARACTERS_MAX = 256

_ROLES = {Role.NODE: pb.ROLE_NODE, Role.PREFILL: pb.ROLE_PREFILL, Role.DECODE: pb.ROLE_DECODE}


def member_from(message: pb.Member) -> Member:
    member_id = _identifier("member_id", message.member_id)
    if message.role not in _ROLES.values():
        raise InvalidArgumentError("role must be node, prefill or decode")
    role = Role(message.role)
    if not message.grpc_address:
        raise InvalidArgumentError("grpc_address must be host:port of the member's service")
    if bool(message.event_endpoint) != bool(message.replay_endpoint):
        raise InvalidArgumentError("event_endpoint and replay_endpoint come together or not at all")
    node_id = message.node_id
    if role is Role.NODE:
        node_id = _identifier("node_id", node_id)
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
    )


def member_to(member: Member) -> pb.Member:
    message = pb.Member(
        member_id=member.member_id,
        role=_ROLES[member.role],
        grpc_address=member.grpc_address,
        node_id=member.node_id,
        event_endpoint=member.event_endpoint,
        replay_endpoint=member.replay_endpoint,
    )
    if member.model is not None:
        message.model.CopyFrom(_model_to(member.model))
    return message


def load_from(message: pb.Load) -> Load:
    return Load(
        message.running,
        message.waiting,
        message.waiting_tokens,
        message.free_blocks,
        message.total_blocks,
    )


def status_to(status: MemberStatus) -> pb.MemberStatus:
    load = status.load
    return pb.MemberStatus(
        member=member_to(status.member),
        load=pb.Load(
            running=load.running,
            waiting=load.waiting,
            waiting_tokens=load.waiting_tokens,
            free_blocks=load.free_blocks,
            total_blocks=load.total_blocks,
        ),
        draining=status.draining,
        silent_s=status.silent_s,
        indexed_blocks=status.indexed_blocks,
    )


def request_from(message: pb.RouteRequest) -> Request:
    if len(message.routing_keys) % _ROUTING_KEY_BYTES:
        raise InvalidArgumentError(
            f"routing_keys: {len(message.routing_keys)} bytes are no whole number of"
            f" {_ROUTING_KEY_BYTES}-byte keys"
        )
    keys: list[RoutingKey] = np.frombuffer(message.routing_keys, "<u8").tolist()
    return Request(
        request_id=RequestId(_identifier("request_id", message.request_id)),
        model=message.model,
        routing_keys=keys,
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        bypass_cache=message.bypass_cache,
    )


def placement_to(placement: Placement) -> pb.RouteResponse:
    response = pb.RouteResponse(
        decode=member_to(placement.decode),
        chosen=_candidate_to(placement.chosen),
        candidates=[_candidate_to(candidate) for candidate in placement.candidates],
    )
    if placement.prefill is not None:
        response.prefill.CopyFrom(member_to(placement.prefill))
    return response


def outcome_from(message: pb.CompleteRequest) -> Outcome:
    for name in ("ttft_s", "prefill_compute_s", "itl_mean_s"):
        if not 0 <= getattr(message, name) < float("inf"):
            raise InvalidArgumentError(f"{name} must be a number of seconds, at least 0")
    return Outcome(
        request_id=RequestId(message.request_id),
        ttft_s=message.ttft_s,
        prefill_compute_s=message.prefill_compute_s,
        computed_tokens=message.computed_tokens,
        itl_mean_s=message.itl_mean_s,
        output_tokens=message.output_tokens,
        failed=message.failed,
    )


def layout_to(layout: KVLayout) -> block_pb2.KVLayout:
    return block_pb2.KVLayout(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_size_tokens=layout.block_size_tokens,
        dtype=layout.dtype,
    )


def _layout_from(message: block_pb2.KVLayout) -> KVLayout:
    return KVLayout(
        message.num_layers,
        message.num_kv_heads,
        message.head_dim,
        message.block_size_tokens,
        message.dtype,
    )


def _model_from(message: pb.ModelInfo) -> ModelInfo:
    if len(message.identity_root) != _ROOT_BYTES:
        raise InvalidArgumentError(
            f"model.identity_root must have {_ROOT_BYTES} bytes, got {len(message.identity_root)}"
        )
    return ModelInfo(
        name=_identifier("model.name", message.name),
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


def _candidate_to(candidate: Candidate) -> pb.Candidate:
    tokens = candidate.tokens
    return pb.Candidate(
        member_id=candidate.member.member_id,
        ttft_s=candidate.ttft_s,
        queue_s=candidate.queue_s,
        load_s=candidate.load_s,
        prefill_s=candidate.prefill_s,
        device_tokens=tokens.device,
        host_tokens=tokens.host,
        disk_tokens=tokens.disk,
        remote_tokens=tokens.remote,
    )


def _identifier(field: str, value: str) -> str:
    if not 1 <= len(value) <= _ID_CHARACTERS_MAX:
        raise InvalidArgumentError(
            f"{field} must have 1 to {_ID_CHARACTERS_MAX} characters, got {len(value)}"
        )
    return value
