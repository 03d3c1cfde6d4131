"""The next token of each sequence, from its logits.

A token depends on its request's sequence, settings and logits alone: not on the batch, nor on which
worker chooses it. So a request goes on with the same tokens after a hand-off or a preemption.

```
 logits ─▶ bad words, min_tokens ─▶ bias ─▶ repetition, frequency, presence
   │                                          │ temperature 0: the largest
   │                                          └▶ temperature ─▶ min-p ─▶ top-k ─▶ top-p ─▶ draw
   └▶ log probabilities to tell
```
This is vLLM's order. `transformers` applies repetition before bad words, which is the same, and
min-p after top-p, which may keep a few more of the less probable tokens.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch

from kvstore.core.errors import InvalidArgumentError, KVStoreError
from model_runner.sampling.draw import draw
from model_runner.sampling.logprobs import TokenLogprobs, tell_logprobs
from model_runner.sampling.processors import EditedRow, edit_logits
from model_runner.sampling.state import SamplingState, state_of
from model_runner.types import Request


class InvalidLogitsError(KVStoreError):
    """The model computed no usable logits for a sequence (NaN or infinity). Check the weights and
    the dtype; float16 overflows where bfloat16 does not."""


class NoTokenLeftError(InvalidArgumentError):
    """bad_words and min_tokens together forbid every token of the vocabulary: forbid fewer."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token, with its log probabilities if the request asks for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None


Outcome = SampledToken | KVStoreError
"""What comes next in a sequence, or why nothing does."""


@torch.inference_mode()
def sample(
    logits: torch.Tensor, requests: Sequence[Request], eos_token_ids: Set[int]
) -> list[Outcome]:
    """One token for each row of `[sequence, vocab]` float32 logits, which may be changed.

    Rows that cannot have one fail alone. Greedy rows without other settings cost their argmax.
    """
    assert len(logits) == len(requests)
    states = [state_of(request, eos_token_ids) for request in requests]
    told = [i for i, request in enumerate(requests) if request.sampling.logprobs is not None]
    logprobs = _rows(logits, told).log_softmax(-1) if told else None
    largest, tokens = logits.max(-1)
    # The largest is finite unless one is NaN or +inf, or all are -inf.
    usable = largest.isfinite()
    forbidden = torch.zeros_like(usable)
    edited = [EditedRow(i, requests[i], s) for i, s in enumerate(states) if s.edits]
    if edited:
        rows = [e.row for e in edited]
        edit_logits(logits, edited)
        largest, tokens[rows] = _rows(logits, rows).max(-1)
        forbidden[rows] = largest == -torch.inf
    _draw_rows(logits, tokens, requests, states)
    chosen, finite, none_left = torch.stack((tokens, usable, forbidden)).tolist()
    outcomes: list[Outcome] = [
        _outcome(request, token, bool(is_finite), bool(has_none))
        for request, token, is_finite, has_none in zip(
            requests, chosen, finite, none_left, strict=True
        )
    ]
    if logprobs is not None:
        _add_logprobs(outcomes, told, requests, chosen, logprobs)
    return outcomes


def _draw_rows(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    requests: Sequence[Request],
    states: Sequence[SamplingState],
) -> None:
    """Replace the largest by a drawn one in rows with a temperature."""
    rows = [i for i, request in enumerate(requests) if request.sampling.temperature > 0]
    if not rows:
        return
    uniforms = [
        stream.at(len(requests[i])) for i in rows if (stream := states[i].stream) is not None
    ]
    tokens[rows] = draw(_rows(logits, rows), [requests[i].sampling for i in rows], uniforms)


def _rows(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """These rows, ascending: without a copy where they are all there are."""
    return logits if len(rows) == len(logits) else logits[rows]


def _outcome(request: Request, token: int, is_finite: bool, none_left: bool) -> Outcome:
    if not is_finite:
        return InvalidLogitsError(f"logits at position {len(request)} are not finite")
    if none_left:
        return NoTokenLeftError(
            f"bad_words and min_tokens leave no token for position {len(request)}: forbid fewer"
        )
    return SampledToken(token)


def _add_logprobs(
    outcomes: list[Outcome],
    rows: Sequence[int],
    requests: Sequence[Request],
    tokens: Sequence[int],
    logprobs: torch.Tensor,
) -> None:
    counts = [requests[i].sampling.logprobs or 0 for i in rows]
    for row, told in zip(
        rows, tell_logprobs(logprobs, [tokens[i] for i in rows], counts), strict=True
    ):
        if isinstance(outcomes[row], SampledToken):
            outcomes[row] = SampledToken(tokens[row], told)
