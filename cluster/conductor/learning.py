"""What completed requests teach."""

from __future__ import annotations

from cluster.conductor.cost import LoadWork, PrefillWork
from cluster.conductor.inflight import InFlight
from cluster.conductor.types import Outcome

_ERROR_WEIGHT = 0.1
_QUEUE_SHARE_MAX = 0.1


class Learner:
    """Feeds the workers' cost models and keeps count of how good the predictions were."""

    def __init__(self) -> None:
        self.completed = 0
        self.failed = 0
        self.ttft_error = 0.0
        self._judged = 0

    def observe(self, placed: InFlight, outcome: Outcome) -> None:
        if outcome.failed:
            self.failed += 1
            return
        self.completed += 1
        if outcome.ttft_s > 0:
            self._judge(placed.predicted.ttft_s, outcome.ttft_s)
            _learn_load(placed, outcome)
        if outcome.prefill_compute_s > 0 and outcome.computed_tokens > 0:
            work = _computed(placed, outcome)
            placed.prefiller.cost.observe_prefill(work, outcome.prefill_compute_s)
        if outcome.itl_mean_s > 0:
            placed.decoder.cost.observe_itl(placed.batch, outcome.itl_mean_s)

    def _judge(self, predicted_s: float, observed_s: float) -> None:
        error = abs(predicted_s - observed_s) / observed_s
        self._judged += 1
        weight = max(_ERROR_WEIGHT, 1 / self._judged)
        self.ttft_error += weight * (error - self.ttft_error)


def _computed(placed: InFlight, outcome: Outcome) -> PrefillWork:
    prompt_tokens = placed.request.prompt_tokens
    return PrefillWork(min(outcome.computed_tokens, prompt_tokens), prompt_tokens)


def _learn_load(placed: InFlight, outcome: Outcome) -> None:
    """What is left of the time to first token without computing is loading and the way: if no
    queue blurs it, and the blocks came from where they were expected."""
    predicted, layout = placed.predicted, placed.layout
    loaded_tokens = placed.request.prompt_tokens - _computed(placed, outcome).computed_tokens
    surprise = abs(loaded_tokens - predicted.tokens.usable)
    queued = predicted.queue_s > _QUEUE_SHARE_MAX * outcome.ttft_s
    if queued or surprise > layout.block_size_tokens or outcome.prefill_compute_s <= 0:
        return
    work = LoadWork(
        predicted.tokens.host * layout.token_bytes, predicted.tokens.disk * layout.token_bytes
    )
    rest_s = outcome.ttft_s - outcome.prefill_compute_s - predicted.queue_s
    placed.prefiller.cost.observe_load(work, max(0.0, rest_s))
