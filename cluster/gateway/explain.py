"""Why a request went where it went, as JSON and as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.gateway.journal import GenerationTrace, RequestRecord
from cluster.gateway.openai_format import TIERS, Json
from cluster.wire.v1 import conductor_pb2 as conductor

_TERMS = ("ttft_s", "queue_s", "load_s", "pull_s", "prefill_s")
_TOKENS = ("cached_tokens", *(f"{tier}_tokens" for tier in TIERS))
_DECODE_TERMS = (
    "itl_s",
    "itl_before_s",
    *(f"join_{how}_s" for how in ("near", "zone", "far", "cold")),
)
_OBSERVED = ("ttft_s", "itl_mean_s", "queue_s", "prefill_compute_s")


Terms = Mapping[str, conductor.ExplainResponse]
"""What the conductor still knows, by the id of the generation."""


def explanation(record: RequestRecord, terms: Terms) -> Json:
    return {
        "object": "explanation",
        "id": record.answer_id,
        "request_id": record.request_id,
        "tenant": record.tenant,
        "model": record.model,
        "generations": [
            _generation(trace, terms.get(trace.generation_id)) for trace in record.generations
        ],
    }


def _generation(trace: GenerationTrace, terms: conductor.ExplainResponse | None) -> Json:
    observed = trace.observed
    hits = {tier: getattr(observed.hits, tier) for tier in TIERS}
    return {
        "id": trace.generation_id,
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": observed.output_tokens,
        "decision": None if trace.route is None else _decision(trace.route),
        "conductor": None if terms is None else _terms(terms),
        "worked": {"prefill": trace.prefill_worker or None, "decode": trace.decode_worker or None},
        "observed": {name: getattr(observed, name) for name in _OBSERVED},
        "hit_tokens": hits,
        "missed_blocks": dict(trace.missed_blocks),
        "error": trace.error,
    }


def _decision(route: conductor.RouteResponse) -> Json:
    return {
        "prefill": route.prefill.member_id if route.HasField("prefill") else None,
        "decode": route.decode.member_id,
        "predicted": {
            "ttft_s": route.chosen.ttft_s,
            "itl_mean_s": route.itl_s,
            "join_s": route.join_s,
        },
        "chosen": _candidate(route.chosen),
        "candidates": [_candidate(candidate) for candidate in route.candidates],
    }


def _terms(terms: conductor.ExplainResponse) -> Json:
    """Of all workers, where the decision lists the best."""
    return {
        "policy": terms.policy,
        "age_s": terms.age_s,
        "prefill": terms.prefill or None,
        "decode": terms.decode or None,
        "refused": terms.refused or None,
        "prefills": [_candidate(candidate) for candidate in terms.prefills],
        "alone": [_candidate(candidate) for candidate in terms.alone],
        "decodes": [_decode_candidate(candidate) for candidate in terms.decodes],
    }


def _decode_candidate(candidate: conductor.DecodeCandidate) -> Json:
    values = {name: getattr(candidate, name) for name in (*_DECODE_TERMS, "batch", "fits")}
    return {"member_id": candidate.member_id, **values}


def _candidate(candidate: conductor.Candidate) -> Json:
    values = {name: getattr(candidate, name) for name in (*_TERMS, *_TOKENS)}
    return {"member_id": candidate.member_id, **values}
