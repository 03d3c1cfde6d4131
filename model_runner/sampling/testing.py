"""Requests and logits for tests of sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.core.ids import RequestId
from model_runner.types import Request, SamplingParams

EOS = frozenset({0})


def random_logits(rows: int, vocab: int = 50, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def request(
    params: SamplingParams | None = None, prompt: Sequence[int] = (1,), output: Sequence[int] = ()
) -> Request:
    tokens = [*prompt, *output]
    return Request(RequestId("r"), tokens, len(prompt), params or SamplingParams())


def at_positions(params: SamplingParams, positions: Sequence[int]) -> list[Request]:
    """Requests whose next tokens stand at these positions of their sequences."""
    return [request(params, [1] * position) for position in positions]
