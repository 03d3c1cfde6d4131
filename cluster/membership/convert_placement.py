"""Placements and explanations as messages."""

from __future__ import annotations

from cluster.conductor.types import Candidate, DecodeCandidate, Explanation, Placement
from cluster.membership.convert import member_to
from cluster.wire.v1 import conductor_pb2 as pb


def placement_to(placement: Placement) -> pb.RouteResponse:
    response = pb.RouteResponse(
        decode=member_to(placement.decode),
        chosen=_candidate_to(placement.chosen),
        candidates=[_candidate_to(candidate) for candidate in placement.candidates],
        itl_s=placement.itl_s,
        join_s=placement.join_s,
    )
    if placement.prefill is not None:
        response.prefill.CopyFrom(member_to(placement.prefill))
    return response


def explanation_to(explanation: Explanation, now_s: float) -> pb.ExplainResponse:
    request = explanation.request
    return pb.ExplainResponse(
        request_id=request.request_id,
        model=request.model,
        policy=explanation.policy,
        age_s=max(0.0, now_s - explanation.decided_s),
        prompt_tokens=request.prompt_tokens,
        prefills=map(_candidate_to, explanation.prefills),
        alone=map(_candidate_to, explanation.alone),
        decodes=map(_decode_candidate_to, explanation.decodes),
        prefill=explanation.prefill or "",
        decode=explanation.decode,
        refused=explanation.refused,
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
        pull_s=candidate.pull_s,
        cached_tokens=candidate.cached_tokens,
    )


def _decode_candidate_to(candidate: DecodeCandidate) -> pb.DecodeCandidate:
    return pb.DecodeCandidate(
        member_id=candidate.member.member_id,
        itl_s=candidate.itl_s,
        itl_before_s=candidate.itl_before_s,
        join_near_s=candidate.join_near_s,
        join_zone_s=candidate.join_zone_s,
        join_far_s=candidate.join_far_s,
        join_cold_s=candidate.join_cold_s,
        batch=candidate.batch,
        fits=candidate.fits,
    )
