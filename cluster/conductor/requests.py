"""What a request may ask for."""

from __future__ import annotations

from cluster.conductor.types import Request
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.layout import KVLayout

PRIORITY_MAX = 100
NAME_CHARACTERS_MAX = 256


def check_request(request: Request, layout: KVLayout) -> None:
    """Raises InvalidArgumentError that names the field."""
    full_blocks = request.prompt_tokens // layout.block_size_tokens
    if request.prompt_tokens < 1:
        raise InvalidArgumentError("prompt_tokens must be at least 1")
    if request.max_tokens < 0:
        raise InvalidArgumentError("max_tokens must not be negative")
    if len(request.routing_keys) > full_blocks:
        raise InvalidArgumentError(
            f"routing_keys: {len(request.routing_keys)} keys, but {request.prompt_tokens} tokens"
            f" have {full_blocks} full blocks of {layout.block_size_tokens}"
        )
    for name, target_s in (("ttft_s", request.targets.ttft_s), ("itl_s", request.targets.itl_s)):
        if not target_s > 0:
            raise InvalidArgumentError(
                f"targets.{name} must be more than 0 seconds; leave it out for none"
            )
    if not -PRIORITY_MAX <= request.priority <= PRIORITY_MAX:
        raise InvalidArgumentError(f"priority must be -{PRIORITY_MAX} to {PRIORITY_MAX}")
    for name, value in (("tenant", request.tenant), ("session", request.session)):
        if len(value) > NAME_CHARACTERS_MAX:
            raise InvalidArgumentError(f"{name} must have at most {NAME_CHARACTERS_MAX} characters")
