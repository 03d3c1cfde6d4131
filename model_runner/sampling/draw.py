"""Tokens from random numbers: the inverse of each row's cumulative distribution.

Tokens stand in the order of the vocabulary: rounding in the logits then moves the steps of the
distribution a little, where an order by probability would swap them.

```
 rows that may draw any token:      [ whole vocabulary ]
 rows with min-p, top-k or top-p:   [ the largest logits ]  if the rest is cut off anyway,
                                    [ whole vocabulary, sorted ]  where it is not
```
Which way a row goes follows from that row alone, so that it draws the same in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from model_runner.sampling.probabilities import column, keep_min_p, probabilities, scale
from model_runner.types import SamplingParams

CANDIDATES = 512
"""Sorting a whole vocabulary takes longer than all the rest, and a filter seldom needs more."""


def draw(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """One token for each row of `[row, vocab]` logits and each number in [0, 1): `[row]` int64."""
    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    filtered = [i for i, p in enumerate(params) if _fits_candidates(p, logits.shape[-1])]
    free = [i for i in range(len(params)) if i not in set(filtered)]
    for rows, way in ((free, _draw_from_all), (filtered, _draw_from_candidates)):
        if rows:
            chosen = [params[i] for i in rows]
            part = logits if len(rows) == len(params) else logits[rows]
            tokens[rows] = way(part, chosen, [uniforms[i] for i in rows])
    return tokens


def _fits_candidates(params: SamplingParams, vocab_size: int) -> bool:
    """Something is cut off, and the largest logits tell how much."""
    if CANDIDATES <= params.top_k < vocab_size:
        return False
    return params.min_p > 0 or 0 < params.top_k < vocab_size or params.top_p < 1


def _draw_from_all(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    return _invert(probabilities(logits, params), uniforms)


def _draw_from_candidates(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """By way of the largest logits; rows that may draw others too take the long way."""
    best, token_ids = _largest(logits)
    weights = _candidate_weights(logits, best, params)
    tokens = _draw_in_order(weights, token_ids, uniforms)
    if best.shape[-1] < logits.shape[-1]:
        # Those that tie with the last candidate are there by chance: none of them may be drawn.
        least = best.masked_fill(weights == 0, math.inf).amin(-1)
        wide = (best[:, -1] >= least).nonzero().squeeze(-1).tolist()
        if wide:
            chosen = [params[i] for i in wide]
            tokens[wide] = _draw_from_all(logits[wide], chosen, [uniforms[i] for i in wide])
    return tokens


def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The candidates' logits, largest first, and their tokens; ties in the vocabulary's order."""
    token_ids = logits.topk(min(CANDIDATES, logits.shape[-1]), dim=-1).indices.sort(dim=-1).values
    best, order = logits.gather(-1, token_ids).sort(dim=-1, descending=True, stable=True)
    return best, token_ids.gather(-1, order)


def _candidate_weights(
    logits: torch.Tensor, best: torch.Tensor, params: Sequence[SamplingParams]
) -> torch.Tensor:
    """Relative probabilities of the `best` logits, largest first; 0 for what is cut off.

    If the last of a row is cut off, so is everything behind it. Where top-k leaves it, which takes
    a tie, top-p is not looked at: the row goes the long way.
    """
    scaled = keep_min_p(scale(best, params), [p.min_p for p in params])
    scaled = _cut_below_top_k(scaled, [p.top_k for p in params])
    weights = scaled.exp()
    nuclear = [i for i, p in enumerate(params) if p.top_p < 1]
    if best.shape[-1] < logits.shape[-1] and any(params[i].top_k for i in nuclear):
        left = (scaled[:, -1] > -math.inf).tolist()
        nuclear = [i for i in nuclear if not (0 < params[i].top_k < logits.shape[-1] and left[i])]
    if nuclear:
        weights[nuclear] = _cut_behind_top_p(logits, scaled, nuclear, params)
    return weights


def _cut_behind_top_p(
    logits: torch.Tensor,
    scaled: torch.Tensor,
    rows: Sequence[int],
    params: Sequence[SamplingParams],
) -> torch.Tensor:
    """Weights of these rows, 0 behind the ones that reach their mass."""
    chosen = [params[i] for i in rows]
    weights = scaled[rows].exp()
    share = _share_of_candidates(logits, scaled, rows, chosen)
    mass = weights / weights.cumsum(-1)[:, -1:] * share
    reached = mass.cumsum(-1) - mass >= column([p.top_p for p in chosen], mass)
    return weights.masked_fill(reached, 0)


def _cut_below_top_k(scaled: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """As in `probabilities`, where rows are sorted: ties with the last that stays stay too."""
    width = scaled.shape[-1]
    if not any(0 < count < width for count in counts):
        return scaled
    ranks = [count - 1 if 0 < count < width else width - 1 for count in counts]
    last = scaled.gather(-1, torch.tensor(ranks, device=scaled.device).unsqueeze(-1))
    return scaled.masked_fill(scaled < last, -math.inf)


def _share_of_candidates(
    logits: torch.Tensor,
    scaled: torch.Tensor,
    rows: Sequence[int],
    params: Sequence[SamplingParams],
) -> torch.Tensor:
    """`[row, 1]`: what part of all probability the candidates have. All of it where the others
    are cut off."""
    share = torch.ones(len(rows), 1, dtype=torch.float64, device=logits.device)
    if scaled.shape[-1] == logits.shape[-1]:
        return share
    open_ended = (scaled[rows, -1] > -math.inf).nonzero().squeeze(-1).tolist()
    if open_ended:
        open_rows = [rows[i] for i in open_ended]
        chosen = [params[i] for i in open_ended]
        everything = keep_min_p(scale(logits[open_rows], chosen), [p.min_p for p in chosen])
        # The largest has weight 1 among the candidates: its probability is what 1 is worth.
        worth = everything.softmax(-1).amax(-1, keepdim=True)
        share[open_ended] = scaled[open_rows].exp().cumsum(-1)[:, -1:] * worth
    return share


def _draw_in_order(
    weights: torch.Tensor, token_ids: torch.Tensor, uniforms: Sequence[float]
) -> torch.Tensor:
    """From relative probabilities of these tokens, in the order of the vocabulary."""
    ordered, order = token_ids.sort(dim=-1)
    places = _invert(weights.gather(-1, order), uniforms)
    return ordered.gather(-1, places.unsqueeze(-1)).squeeze(-1)


def _invert(weights: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """The place in each row at which its uniform share of the row's sum is reached."""
    steps = weights.cumsum(-1)
    total = steps[:, -1:]
    points = column(uniforms, steps) * total
    # Rounded up to the total, a point would fall behind the last possible token.
    points = torch.minimum(points, total.nextafter(torch.zeros_like(total)))
    # A row that is not finite has no steps; its token is never used.
    return torch.searchsorted(steps, points, right=True).squeeze(-1).clamp(max=steps.shape[-1] - 1)
