"""Which tokens may be drawn, and how probable each is: the definition, over the whole vocabulary.

In float64: what a row draws must not turn on how its probabilities were rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from model_runner.types import SamplingParams


def probabilities(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """`[row, vocab]` float64: temperature, min-p, top-k, top-p; each row sums to 1."""
    scaled = scale(logits, params)
    scaled = keep_min_p(scaled, [p.min_p for p in params])
    limited = [i for i, p in enumerate(params) if 0 < p.top_k < logits.shape[-1]]
    if limited:
        scaled[limited] = _keep_top_k(scaled[limited], [params[i].top_k for i in limited])
    nuclear = [i for i, p in enumerate(params) if p.top_p < 1]
    if nuclear:
        scaled[nuclear] = _keep_top_p(scaled[nuclear], [params[i].top_p for i in nuclear])
    return scaled.softmax(-1)


def scale(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Distances from the largest logit, over the temperature: 0 for the largest, however cold."""
    gaps = logits.double() - logits.amax(-1, keepdim=True)
    return gaps / column([p.temperature for p in params], gaps)


def keep_min_p(scaled: torch.Tensor, fractions: Sequence[float]) -> torch.Tensor:
    """Tokens less probable than a row's fraction of its most probable one become -inf."""
    if not any(fractions):
        return scaled
    return scaled.masked_fill(scaled.exp() < column(fractions, scaled), -math.inf)


def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """`[row, 1]` float64, one value a row, on the device of `like`."""
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(-1)


def _keep_top_k(logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Logits below a row's `counts`-th largest become -inf; ties with it stay."""
    largest = logits.topk(max(counts), dim=-1).values
    ranks = torch.tensor(counts, device=logits.device).unsqueeze(-1) - 1
    return logits.masked_fill(logits < largest.gather(-1, ranks), -math.inf)


def _keep_top_p(logits: torch.Tensor, masses: Sequence[float]) -> torch.Tensor:
    """The fewest tokens, most probable first, that reach a row's probability mass stay."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    weights = ordered.softmax(-1)
    reached = weights.cumsum(-1) - weights >= column(masses, weights)
    return logits.masked_fill(reached.scatter(-1, order, reached), -math.inf)
