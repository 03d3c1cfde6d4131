"""A job as the conductor and the workers are told of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.gateway.prompts import Job
from cluster.gateway.tenants import DEFAULT_TENANT
from cluster.wire.v1 import conductor_pb2 as conductor
from model_runner.wire.v1 import generation_pb2 as generation


def route_request(job: Job) -> conductor.RouteRequest:
    wishes = job.wishes
    return conductor.RouteRequest(
        request_id=job.request_id,
        model=job.model.name,
        routing_keys=job.routing_keys,
        prompt_tokens=len(job.prompt_token_ids),
        max_tokens=job.sampling.max_tokens,
        bypass_cache=job.bypass_cache,
        priority=job.priority,
        ttft_target_s=wishes.ttft_target_s or 0.0,
        itl_target_s=wishes.itl_target_s or 0.0,
        tenant="" if wishes.tenant.name == DEFAULT_TENANT else wishes.tenant.name,
        session=wishes.session or "",
    )


def generate_request(job: Job, output_token_ids: Sequence[int]) -> generation.GenerateRequest:
    """For the tokens after `output_token_ids`."""
    return generation.GenerateRequest(
        request_id=job.request_id,
        model=job.model.name,
        prompt_token_ids=job.prompt_token_ids,
        output_token_ids=output_token_ids,
        sampling=job.sampling,
        bypass_cache=job.bypass_cache,
        cache_salt=job.wishes.tenant.cache_salt,
        priority=job.priority,
    )
