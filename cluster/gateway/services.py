"""What the requests to a gateway share."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from cluster.conductor.prompt_keys import PromptKeys
from cluster.gateway.admission import InFlight
from cluster.gateway.config import GatewayConfig
from cluster.gateway.generate import Cluster
from cluster.gateway.journal import Journal
from cluster.gateway.rate_limits import RateLimits
from cluster.gateway.tokenizers import TokenizerCache
from kvstore.observability.metrics import ServingMetrics


@dataclass(frozen=True, slots=True)
class Services:
    """Lives as long as the application."""

    config: GatewayConfig
    cluster: Cluster
    tokenizers: TokenizerCache
    metrics: ServingMetrics
    in_flight: InFlight
    limits: RateLimits
    journal: Journal
    prompt_keys: PromptKeys


def services_of(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services
