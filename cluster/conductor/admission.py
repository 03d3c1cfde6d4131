"""Whether a request is taken, given the best that can be done for it.

```
 mode          time to first token     time between tokens
 none          taken, whatever         taken, whatever
 late          predicted on arrival    when its prompt is computed: a refusal then wastes that work
 early         predicted on arrival    by what decodes now; those whose prompts are being computed
                                       are not seen, so that prefill and decode load swing
 predictive    predicted on arrival    by what will decode when its prompt is computed
```
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.conductor.forecast import DecodeLoad, Schedule
from cluster.conductor.policies.base import Choice
from cluster.conductor.prospects import Prospects
from kvstore.core.errors import OverloadedError

AdmissionMode = Literal["none", "late", "early", "predictive"]

_PACE = "time between tokens"
_RETRY_MIN_S = 0.1
_RETRY_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which target would be missed."""

    what: str
    predicted_s: float
    target_s: float
    retry_after_s: float
    """When it may be met."""
    may_pass: bool
    """Whether waiting can help."""

    def __str__(self) -> str:
        return f"{self.what} of {self.predicted_s:.3g} s predicted, target {self.target_s:.3g} s"

    def error(self) -> OverloadedError:
        return OverloadedError(
            f"the cluster is too busy for this request's targets: {self}; retry later, or ask for"
            " less",
            retry_after_s=self.retry_after_s,
        )


class Admission:
    """Pure; a request without targets is always taken."""

    def __init__(self, mode: AdmissionMode, schedule: Schedule) -> None:
        self.mode = mode
        self._schedule = schedule

    def judge(self, prospects: Prospects, choice: Choice, waited_s: float) -> Refusal | None:
        """Before it is placed, after it has waited for so long. None: taken."""
        if self.mode == "none":
            return None
        targets = prospects.request.targets
        ttft_s = _ttft_s(prospects, choice)
        late_s = waited_s + ttft_s - targets.ttft_s
        if late_s > 0:
            return _refusal("time to first token", waited_s + ttft_s, targets.ttft_s, late_s)
        if self.mode == "late" or targets.itl_s == float("inf"):
            return None
        now_s = prospects.context.now_s
        moment_s = now_s if self.mode == "early" else now_s + ttft_s
        slot = int(prospects.view.slots[prospects.view.num_prefills + choice.decode])
        load = self._schedule.at(slot, moment_s, now_s)
        return _judge_pace(prospects, choice, load)

    def judge_joining(self, predicted_s: float, target_s: float) -> Refusal | None:
        """When its prompt is computed: the time between tokens that is predicted now."""
        if self.mode != "late" or predicted_s <= target_s:
            return None
        return _refusal(_PACE, predicted_s, target_s, predicted_s)


def _ttft_s(prospects: Prospects, choice: Choice) -> float:
    if choice.prefill is None:
        return float(prospects.alone.ttft_s[choice.decode])
    assert prospects.prefill is not None
    return float(prospects.prefill.ttft_s[choice.prefill])


def _judge_pace(prospects: Prospects, choice: Choice, load: DecodeLoad) -> Refusal | None:
    target_s = prospects.request.targets.itl_s
    predicted_s = prospects.decode.pace_s(choice.decode, load.sequences, load.tokens)
    if predicted_s <= target_s:
        return None
    # As many have to end as make the step that much shorter; they end one after another.
    answer_s = predicted_s * prospects.context.answer_tokens
    return _refusal(_PACE, predicted_s, target_s, (1 - target_s / predicted_s) * answer_s)


def _refusal(what: str, predicted_s: float, target_s: float, after_s: float) -> Refusal:
    retry_after_s = min(max(after_s, _RETRY_MIN_S), _RETRY_MAX_S)
    may_pass = what == _PACE
    return Refusal(what, predicted_s, target_s, retry_after_s, may_pass)
