"""What a generation looked like from here: metrics as it goes, figures for the conductor at its
end."""

from __future__ import annotations

from cluster.gateway.openai_format import TIERS
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.ports import Clock
from kvstore.observability.metrics import ServingMetrics
from model_runner.wire.v1 import generation_pb2 as generation


class Observation:
    """Watches the chunks of one prompt's answer, in order. Never fails, never waits."""

    def __init__(
        self,
        metrics: ServingMetrics,
        clock: Clock,
        *,
        model: str,
        prompt_tokens: int,
        arrived_s: float,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._arrived_s = arrived_s
        self._first_s: float | None = None
        self._last_s = arrived_s
        self._prefill_compute_s = 0.0
        self._queue_s = 0.0
        self.hit_tokens = generation.HitTokens()
        """Of the worker that computed the first token: what was not computed for this prompt."""
        self.missed_blocks: dict[str, int] = {}
        """Of the prompt, by the reason why that worker computed them."""
        self.output_tokens = 0

    @property
    def num_hits(self) -> int:
        """Prompt tokens that were not computed."""
        hits = self.hit_tokens
        return min(hits.device + hits.host + hits.disk + hits.remote, self._prompt_tokens)

    def chunk(self, chunk: generation.GenerateChunk) -> None:
        if not chunk.token_ids:
            return
        now_s = self._clock()
        if self._first_s is None:
            self._first(chunk, now_s)
        else:
            gap_s = (now_s - self._last_s) / len(chunk.token_ids)
            itl_s = self._metrics.itl_s.labels(self._model)
            for _ in chunk.token_ids:
                itl_s.observe(gap_s)
        self._last_s = now_s
        self.output_tokens += len(chunk.token_ids)

    def completion(
        self, request_id: str, *, failed: bool, as_routed: bool
    ) -> conductor.CompleteRequest:
        """Without `as_routed` there are no times in it: they are not those of the worker that the
        conductor would learn them for."""
        completion = conductor.CompleteRequest(
            request_id=request_id, output_tokens=self.output_tokens, failed=failed
        )
        if self._first_s is not None and as_routed:
            completion.ttft_s = self._first_s - self._arrived_s
            completion.prefill_compute_s = self._prefill_compute_s
            completion.queue_s = self._queue_s
            completion.hits.CopyFrom(
                conductor.HitTokens(**{tier: getattr(self.hit_tokens, tier) for tier in TIERS})
            )
            completion.computed_tokens = self._prompt_tokens - self.num_hits
            if self.output_tokens > 1:
                completion.itl_mean_s = (self._last_s - self._first_s) / (self.output_tokens - 1)
        return completion

    def _first(self, chunk: generation.GenerateChunk, now_s: float) -> None:
        self._first_s = now_s
        self._prefill_compute_s = chunk.compute_s
        self._queue_s = chunk.queue_s
        self.hit_tokens.CopyFrom(chunk.hit_tokens)
        self.missed_blocks = dict(chunk.missed_blocks)
        self._metrics.ttft_s.labels(self._model).observe(now_s - self._arrived_s)
        self._metrics.prompt_tokens.labels(self._model).inc(self._prompt_tokens)
        for tier in TIERS:
            hits = getattr(chunk.hit_tokens, tier)
            self._metrics.hit_tokens.labels(self._model, tier).inc(hits)
