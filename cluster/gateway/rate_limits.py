"""How much a tenant may ask for in a minute. Pure but for the clock, which is passed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.gateway.config import TenantConfig
from cluster.gateway.errors import RateLimitError
from kvstore.core.ports import Clock

_WINDOW_S = 60.0


class TokenBucket:
    """Holds what may be taken within a minute, and fills up evenly.

    It may be overdrawn: nothing more is let in until the debt is paid. So what costs more than a
    minute's worth is possible, and what something costs need not be known before.
    """

    def __init__(self, per_min: int, clock: Clock) -> None:
        self._capacity = float(per_min)
        self._per_s = per_min / _WINDOW_S
        self._clock = clock
        self._level = self._capacity
        self._seen_s = clock()

    def wait_s(self, needed: float) -> float:
        """Seconds until it holds so much; 0: now."""
        self._fill()
        return max(0.0, (min(needed, self._capacity) - self._level) / self._per_s)

    def take(self, amount: float) -> None:
        self._fill()
        self._level -= amount

    def _fill(self) -> None:
        now_s = max(self._clock(), self._seen_s)
        filled = self._level + (now_s - self._seen_s) * self._per_s
        self._level = min(self._capacity, filled)
        self._seen_s = now_s


@dataclass(frozen=True, slots=True)
class _Buckets:
    requests: TokenBucket | None
    tokens: TokenBucket | None


class RateLimits:
    """Of all tenants that have any; bounded by the settings. One event loop only.

    The limits hold for each gateway by itself.
    """

    def __init__(self, settings: Mapping[str, TenantConfig], clock: Clock) -> None:
        self._tenants = {
            name: _Buckets(
                _bucket(tenant.requests_per_min, clock), _bucket(tenant.tokens_per_min, clock)
            )
            for name, tenant in settings.items()
        }

    def admit(self, tenant: str) -> None:
        """Count a request in. Raises RateLimitError, and counts nothing, if it comes too soon."""
        buckets = self._tenants.get(tenant)
        if buckets is None:
            return
        for bucket, what in ((buckets.requests, "requests"), (buckets.tokens, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s(1)) > 0:
                raise RateLimitError(
                    f"tenant {tenant} has used up its {what} of this minute; retry after "
                    f"{wait_s:.3g} s",
                    retry_after_s=wait_s,
                )
        if buckets.requests is not None:
            buckets.requests.take(1)

    def charge(self, tenant: str, tokens: int) -> None:
        """Of a prompt when it is known, of an answer when it is over."""
        buckets = self._tenants.get(tenant)
        if buckets is not None and buckets.tokens is not None:
            buckets.tokens.take(tokens)


def _bucket(per_min: int | None, clock: Clock) -> TokenBucket | None:
    return None if per_min is None else TokenBucket(per_min, clock)
