"""The next token of each sequence, from its logits.

A draw depends on (seed, position) and the row's logits alone: not on the batch, nor on which worker
draws. So a request goes on with the same tokens after a hand-off or a preemption.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from kvstore.core.encoding import encode_fields
from kvstore.core.errors import InvalidArgumentError, KVStoreError
from model_runner.types import SamplingParams


class InvalidLogitsError(KVStoreError):
    """The model computed no usable logits for a sequence (NaN or infinity). Check the weights and
    the dtype; float16 overflows where bfloat16 does not."""


def validate(params: SamplingParams, max_context_tokens: int) -> None:
    """Raises InvalidArgumentError, naming the field and what it accepts."""
    _require(
        "temperature", params.temperature, 0 <= params.temperature < math.inf, "finite, 0 or more"
    )
    _require("top_p", params.top_p, 0 < params.top_p <= 1, "above 0, up to 1")
    _require("top_k", params.top_k, params.top_k >= 0, "0 (off) or more")
    _require(
        "seed", params.seed, params.seed is None or 0 <= params.seed < 2**64, "from 0 to 2^64 - 1"
    )
    _require(
        "max_tokens",
        params.max_tokens,
        1 <= params.max_tokens <= max_context_tokens,
        f"from 1 to {max_context_tokens}",
    )
    _require(
        "stop_token_ids",
        sorted(params.stop_token_ids),
        all(token >= 0 for token in params.stop_token_ids),
        "0 or more each",
    )


def _require(field: str, value: object, holds: bool, accepted: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{field} must be {accepted}, got {value}")


def sample(
    logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]
) -> list[int | InvalidLogitsError]:
    """One token for each row of `[sequence, vocab]` float32 logits, or why there is none.

    `positions[i]` is where the token will stand in its sequence. Rows with a temperature must have
    a seed: a caller gives those that came without one a random seed, once.
    """
    assert len(logits) == len(params) == len(positions)
    tokens = logits.argmax(-1).tolist()
    drawn = [i for i, p in enumerate(params) if p.temperature > 0]
    if drawn:
        chosen = [params[i] for i in drawn]
        uniforms = [uniform(p.seed, positions[i]) for i, p in zip(drawn, chosen, strict=True)]
        for i, token in zip(drawn, _draw(logits[drawn], chosen, uniforms), strict=True):
            tokens[i] = token
    # The largest logit is finite unless one is NaN or +inf, or all are -inf.
    finite = logits.amax(-1).isfinite().tolist()
    return [
        token if usable else InvalidLogitsError(f"logits at position {position} are not finite")
        for token, usable, position in zip(tokens, finite, positions, strict=True)
    ]


def uniform(seed: int | None, position: int) -> float:
    """A number in [0, 1) that is this position's own, with 53 random bits."""
    assert seed is not None, "sampling needs a seed"
    digest = hashlib.sha256(encode_fields("kvstore.sample.v1", seed, position)).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / 2**53


def _draw(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> list[int]:
    """Inverse of the cumulative distribution in vocabulary order: rounding in the logits moves
    its steps a little, where an order by probability would swap them."""
    steps = probabilities(logits, params).cumsum(-1)
    total = steps[:, -1:]
    points = torch.tensor(uniforms, dtype=steps.dtype, device=steps.device).unsqueeze(-1) * total
    # Rounded up to the total, a point would fall behind the last possible token.
    points = torch.minimum(points, total.nextafter(torch.zeros_like(total)))
    tokens: list[int] = torch.searchsorted(steps, points, right=True).squeeze(-1).tolist()
    return tokens


def probabilities(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """`[sequence, vocab]` float64: temperature, then top-k, then top-p; each row sums to 1."""
    temperatures = torch.tensor([p.temperature for p in params], dtype=torch.float64)
    gaps = logits.double() - logits.amax(-1, keepdim=True)
    scaled = gaps / temperatures.to(logits.device).unsqueeze(-1)
    limited = [i for i, p in enumerate(params) if 0 < p.top_k < logits.shape[-1]]
    if limited:
        scaled[limited] = _keep_top_k(scaled[limited], [params[i].top_k for i in limited])
    nuclear = [i for i, p in enumerate(params) if p.top_p < 1]
    if nuclear:
        scaled[nuclear] = _keep_top_p(scaled[nuclear], [params[i].top_p for i in nuclear])
    return scaled.softmax(-1)


def _keep_top_k(logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Logits below a row's `counts`-th largest become -inf; ties with it stay."""
    largest = logits.topk(max(counts), dim=-1).values
    ranks = torch.tensor(counts, device=logits.device).unsqueeze(-1) - 1
    return logits.masked_fill(logits < largest.gather(-1, ranks), -math.inf)


def _keep_top_p(logits: torch.Tensor, masses: Sequence[float]) -> torch.Tensor:
    """The fewest tokens, most probable first, that reach a row's probability mass stay."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    weights = ordered.softmax(-1)
    mass = torch.tensor(masses, dtype=weights.dtype, device=logits.device).unsqueeze(-1)
    reached = weights.cumsum(-1) - weights >= mass
    return logits.masked_fill(reached.scatter(-1, order, reached), -math.inf)
