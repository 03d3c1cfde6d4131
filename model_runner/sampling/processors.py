"""Changes to logits that greedy sampling sees too: bad words, bias, penalties.

All rows of a step are changed together. What changes is a few tokens of each row, so a change is a
list of places in the flattened logits:

```
 rows      2      2      5      5      5
 tokens    17     80     3      17     99        places = row x vocabulary + token
```
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model_runner.sampling.state import SamplingState
from model_runner.types import Request


@dataclass(frozen=True, slots=True)
class EditedRow:
    """A row of the logits, and whose it is."""

    row: int
    request: Request
    state: SamplingState


def edit_logits(logits: torch.Tensor, rows: Sequence[EditedRow]) -> None:
    """Change `[row, vocab]` float32 logits in place: forbid, then bias, then penalise."""
    _forbid(logits, rows)
    _bias(logits, rows)
    _penalise(logits, [r for r in rows if r.state.seen is not None])


def _forbid(logits: torch.Tensor, rows: Sequence[EditedRow]) -> None:
    forbidden = [np.array(r.state.forbidden(r.request), np.int64) for r in rows]
    places = _places(logits, rows, forbidden)
    if len(places):
        logits.view(-1)[places] = -math.inf


def _bias(logits: torch.Tensor, rows: Sequence[EditedRow]) -> None:
    biased = [(r, r.state.bias) for r in rows if r.state.bias is not None]
    if not biased:
        return
    places = _places(logits, [r for r, _ in biased], [bias.ids for _, bias in biased])
    values = np.concatenate([bias.values for _, bias in biased])
    logits.view(-1)[places] += torch.from_numpy(values).to(logits.device)


def _penalise(logits: torch.Tensor, rows: Sequence[EditedRow]) -> None:
    """Repetition, then frequency, then presence."""
    seen = [tokens for r in rows if (tokens := r.state.seen) is not None]
    if not seen:
        return
    for row, tokens in zip(rows, seen, strict=True):
        tokens.read(row.request.token_ids, row.request.num_prompt_tokens)
    places = _places(logits, rows, [tokens.ids for tokens in seen])
    sizes = [len(tokens.ids) for tokens in seen]
    params = [r.request.sampling for r in rows]
    repetition = _spread([p.repetition_penalty for p in params], sizes)
    counts = np.concatenate([tokens.output_counts for tokens in seen])
    frequency = _spread([p.frequency_penalty for p in params], sizes) * counts
    presence = _spread([p.presence_penalty for p in params], sizes) * (counts > 0)
    divisor, often, once = torch.from_numpy(np.stack((repetition, frequency, presence))).to(
        logits.device
    )
    values = logits.view(-1)[places]
    values = torch.where(values < 0, values * divisor, values / divisor)
    logits.view(-1)[places] = values - often - once


def _spread(of_rows: Sequence[float], sizes: Sequence[int]) -> npt.NDArray[np.float32]:
    return np.repeat(np.array(of_rows, np.float32), sizes)


def _places(
    logits: torch.Tensor, rows: Sequence[EditedRow], tokens: Sequence[npt.NDArray[np.int64]]
) -> torch.Tensor:
    starts = np.array([r.row for r in rows], np.int64) * logits.shape[-1]
    places = np.repeat(starts, [len(t) for t in tokens]) + np.concatenate(tokens)
    return torch.from_numpy(places).to(logits.device)
