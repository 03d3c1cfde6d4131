"""Log probabilities to tell: of a token, and of the most probable ones in its place.

They are the model's own: of its logits before bias, penalties and temperature, so that they mean
the same whatever a request is sampled with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one token. -inf where the model gives it no chance at all."""

    logprob: float
    top_token_ids: tuple[int, ...]
    """The most probable ones first; as many as were asked for."""
    top_logprobs: tuple[float, ...]


def tell_logprobs(
    logprobs: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]
) -> list[TokenLogprobs]:
    """One for each row of `[row, vocab]` log probabilities, with the `counts[row]` best."""
    assert len(logprobs) == len(token_ids) == len(counts)
    ids = torch.tensor(token_ids, device=logprobs.device).unsqueeze(-1)
    own = logprobs.gather(-1, ids).squeeze(-1).tolist()
    best = logprobs.topk(min(max(counts), logprobs.shape[-1]), dim=-1)
    return [
        TokenLogprobs(value, tuple(top_ids[:count]), tuple(top_values[:count]))
        for value, top_ids, top_values, count in zip(
            own, best.indices.tolist(), best.values.tolist(), counts, strict=True
        )
    ]
