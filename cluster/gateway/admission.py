"""How many answers are generated at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from cluster.gateway.errors import BadFieldError
from kvstore.core.errors import ResourceExhaustedError


class InFlight:
    """Counts answers: each prompt has `n`. Refuses, rather than queues, those beyond the bound. One
    event loop only."""

    def __init__(self, prompts_max: int, gauge: Gauge) -> None:
        self._prompts_max = prompts_max
        self._prompts = 0
        gauge.set_function(lambda: self._prompts)

    @contextmanager
    def admit(self, prompts: int) -> Iterator[None]:
        """Raises ResourceExhaustedError if there is no room now, BadFieldError if there never
        is."""
        if prompts > self._prompts_max:
            raise BadFieldError(
                "prompt",
                f"at most {self._prompts_max} prompts are taken at once, each counted n times; "
                "send fewer, or lower n",
            )
        if self._prompts + prompts > self._prompts_max:
            raise ResourceExhaustedError(
                f"{self._prompts} of at most {self._prompts_max} prompts are in flight; retry soon"
            )
        self._prompts += prompts
        try:
            yield
        finally:
            self._prompts -= prompts
