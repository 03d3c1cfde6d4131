"""The last requests, each with why it went where it went. Bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.gateway.tenants import Tenant
from cluster.wire.v1 import conductor_pb2 as conductor

REQUESTS_MAX = 512


@dataclass(frozen=True, slots=True)
class GenerationTrace:
    """How one answer to one prompt came about."""

    generation_id: str
    """What the conductor and the workers call it."""
    prompt_tokens: int
    route: conductor.RouteResponse | None
    """None: no route was found."""
    prefill_worker: str
    """Who worked on it in the end; empty: nobody."""
    decode_worker: str
    observed: conductor.CompleteRequest
    missed_blocks: Mapping[str, int]
    """Of the prompt, by the reason why they were computed."""
    error: str | None


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request. Its generations are there when they are over."""

    answer_id: str
    request_id: str
    tenant: str
    model: str
    generations: list[GenerationTrace] = field(default_factory=list)


class Journal:
    """The oldest request goes when there is one too many. One event loop only."""

    def __init__(self, requests_max: int = REQUESTS_MAX) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=requests_max)

    def open(self, record: RequestRecord) -> None:
        self._records.append(record)

    def find(self, name: str, tenant: Tenant) -> RequestRecord | None:
        """The last one with this id of the answer or of the request, among those that the tenant
        may see."""
        for record in reversed(self._records):
            visible = tenant.is_admin or record.tenant == tenant.name
            if visible and name in (record.answer_id, record.request_id):
                return record
        return None
