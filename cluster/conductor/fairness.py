"""Fair share between tenants: the virtual token counter (VTC; Sheng et al., OSDI 2024).

Each tenant is charged for what its requests cost; the one charged least goes next. A tenant that
comes back after a pause is lifted to the least of those that wait: idling saves up nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_INPUT_WEIGHT = 1.0
_OUTPUT_WEIGHT = 2.0
"""A token of an answer takes a step of its own, those of a prompt share one."""

_TENANTS_MAX = 4096


class FairShare:
    """Bounded: the tenant that was charged least lately is forgotten, and begins anew."""

    def __init__(self) -> None:
        self._charged: dict[str, float] = {}

    def charged(self, tenant: str) -> float:
        return self._charged.get(tenant, 0.0)

    def all_charged(self) -> Mapping[str, float]:
        """Every tenant that is remembered. A copy."""
        return dict(self._charged)

    def restore(self, charged: Mapping[str, float]) -> None:
        self._charged = dict(charged)

    def lift(self, tenant: str, waiting: Iterable[str]) -> None:
        """It begins to wait, beside these."""
        others = [self.charged(other) for other in waiting if other != tenant]
        if others:
            self._charged[tenant] = max(self.charged(tenant), min(others))

    def charge(self, tenant: str, input_tokens: float, output_tokens: float) -> None:
        """For prompt tokens that were computed, and tokens of the answer. Negative: too much was
        charged before."""
        cost = _INPUT_WEIGHT * input_tokens + _OUTPUT_WEIGHT * output_tokens
        self._charged[tenant] = max(0.0, self._charged.pop(tenant, 0.0) + cost)
        if len(self._charged) > _TENANTS_MAX:
            del self._charged[next(iter(self._charged))]
