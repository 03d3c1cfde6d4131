"""What completed requests teach."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.conductor.cost import DecodeWork, LoadWork, PrefillWork
from cluster.conductor.inflight import InFlight
from cluster.conductor.past import Past
from cluster.conductor.prediction_error import PredictionError
from cluster.conductor.types import Outcome, TierTokens

_QUEUE_SHARE_MAX = 0.1
_BUSY_MAX = 0.9
_ANSWER_TOKENS = 128.0
_ANSWER_WEIGHT = 0.02


class Learner:
    """Feeds the workers' cost models and keeps count of how good the predictions were."""

    def __init__(self) -> None:
        self.completed = 0
        self.failed = 0
        self.ttft_error = PredictionError()
        self.itl_error = PredictionError()
        self._answer_tokens: dict[str, float] = {}

    def answer_tokens(self, model: str, max_tokens: int) -> float:
        """Expected length of an answer: the mean of the model's, or as long as it may get."""
        return max(1.0, min(max_tokens, self._answer_tokens.get(model, _ANSWER_TOKENS)))

    def answer_lengths(self) -> Mapping[str, float]:
        """Mean of each model. A copy."""
        return dict(self._answer_tokens)

    def restore(self, answer_lengths: Mapping[str, float]) -> None:
        self._answer_tokens = dict(answer_lengths)

    def observe(self, placed: InFlight, outcome: Outcome, after: Past) -> None:
        """`after`: of the decode worker, now."""
        self.count(outcome)
        if outcome.failed:
            return
        prefiller = placed.prefiller
        if outcome.ttft_s > 0:
            for error in (self.ttft_error, prefiller.ttft_error):
                error.judge(placed.predicted.ttft_s, outcome.ttft_s)
            _learn_load(placed, outcome)
        if outcome.prefill_compute_s > 0 and outcome.computed_tokens > 0:
            prefiller.cost.observe(
                prefiller.slot, _computed(placed, outcome), outcome.prefill_compute_s
            )
        if outcome.itl_mean_s > 0:
            self._learn_itl(placed, outcome, after)
        if outcome.output_tokens > 0:
            self._learn_length(placed.request.model, outcome.output_tokens)

    def count(self, outcome: Outcome) -> None:
        """One that nothing can be learned from."""
        self.failed += outcome.failed
        self.completed += not outcome.failed

    def _learn_itl(self, placed: InFlight, outcome: Outcome, after: Past) -> None:
        """Prompts that the worker computed meanwhile stretched the time of its decode steps."""
        decoder, before = placed.decoder, placed.before
        for error in (self.itl_error, decoder.itl_error):
            error.judge(placed.itl_s, outcome.itl_mean_s)
        passed_s = after.at_s - before.at_s
        if passed_s <= 0:
            return
        work = DecodeWork(
            (after.sequences_dt - before.sequences_dt) / passed_s,
            (after.tokens_dt - before.tokens_dt) / passed_s,
        )
        busy = min((after.work_s - before.work_s) / passed_s, _BUSY_MAX)
        decoder.cost.observe(decoder.slot, work, outcome.itl_mean_s * (1 - busy))

    def _learn_length(self, model: str, output_tokens: int) -> None:
        mean = self._answer_tokens.get(model, float(output_tokens))
        self._answer_tokens[model] = mean + _ANSWER_WEIGHT * (output_tokens - mean)


def _computed(placed: InFlight, outcome: Outcome) -> PrefillWork:
    prompt_tokens = placed.request.prompt_tokens
    return PrefillWork(min(outcome.computed_tokens, prompt_tokens), prompt_tokens)


def _learn_load(placed: InFlight, outcome: Outcome) -> None:
    """What is left of the time to first token without computing is loading and the way: if no
    queue blurs it, and it is known where the blocks came from."""
    hits = _hits(placed, outcome)
    queue_s = outcome.queue_s or placed.predicted.queue_s
    blurred = not outcome.queue_s and queue_s > _QUEUE_SHARE_MAX * outcome.ttft_s
    if hits is None or blurred or outcome.prefill_compute_s <= 0:
        return
    token_bytes = placed.layout.token_bytes
    work = LoadWork(hits.host * token_bytes, hits.disk * token_bytes, hits.remote * token_bytes)
    rest_s = outcome.ttft_s - outcome.prefill_compute_s - queue_s
    placed.prefiller.cost.observe(placed.prefiller.slot, work, max(0.0, rest_s))


def _hits(placed: InFlight, outcome: Outcome) -> TierTokens | None:
    """As told; if not, as expected, where as many tokens were computed as expected."""
    if outcome.hits is not None:
        return outcome.hits
    expected = placed.predicted
    cached = placed.request.prompt_tokens - _computed(placed, outcome).computed_tokens
    if abs(cached - expected.cached_tokens) > placed.layout.block_size_tokens:
        return None
    tokens = expected.tokens
    pulled = max(0, expected.cached_tokens - tokens.usable)
    return TierTokens(tokens.device, tokens.host, tokens.disk, pulled)
