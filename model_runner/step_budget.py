"""What becomes of a step that the device has no memory for: it is computed in smaller parts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from kvstore.core.errors import ResourceExhaustedError
from model_runner.types import Chunk

_LOG = logging.getLogger(__name__)

_STEPS_UNTIL_MORE = 64
"""Parts that went well, after which twice as much is tried again."""
_SIGNS = ("out of memory", "can't allocate memory")
"""What torch says on CUDA, and on the CPU, where it has no type of error for it."""


class StepTooLargeError(ResourceExhaustedError):
    """The device has no memory for a step. Where that step was a single token of one request: take
    a shorter prompt, or a worker with fewer `device_blocks`, which leaves more for activations."""


def as_too_large(error: Exception) -> StepTooLargeError | None:
    """None if it is some other error. The result does not keep the step's tensors alive, as the
    traceback of `error` does."""
    of_torch = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or of_torch):
        return None
    return StepTooLargeError(
        f"the device ran out of memory ({type(error).__name__}): send a shorter prompt, or give "
        "the worker fewer device_blocks"
    )


class StepBudget:
    """How many tokens are computed at once. Unbounded until the device runs out of memory; then
    half of what was too much, and after a while without trouble twice that, until it is unbounded
    again. Owned by the engine's thread.
    """

    def __init__(self) -> None:
        self._max_tokens: int | None = None
        self._largest = 0
        """Of the steps that were too large."""
        self._parts_until_more = 0

    @property
    def max_tokens(self) -> int | None:
        return self._max_tokens

    def part(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """The leading chunks that are within the budget: at least the first one. Of one that is not
        even alone, as much as is; the rest of it is still to compute, and comes in a later step."""
        if self._max_tokens is None:
            return list(chunks)
        part: list[Chunk] = []
        room = self._max_tokens
        for chunk in chunks:
            one = replace(chunk, num_tokens=min(chunk.num_tokens, self._max_tokens))
            if one.num_tokens > room:
                break
            part.append(one)
            room -= one.num_tokens
        return part

    def shrink(self, part: Sequence[Chunk]) -> bool:
        """It was too much at once. False if it cannot be less, for it was a single token: then its
        request is too much for this device, and the others are not to blame."""
        tokens = sum(chunk.num_tokens for chunk in part)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what is cached in pieces may be enough as a whole
        if tokens == 1:
            self._max_tokens, self._largest = None, 0
            return False
        self._max_tokens = tokens // 2
        self._largest = max(self._largest, tokens)
        self._parts_until_more = _STEPS_UNTIL_MORE
        _LOG.warning("no memory for %d tokens at once: going on with %d", tokens, self._max_tokens)
        return True

    def went_well(self) -> None:
        """A part was computed."""
        if self._max_tokens is None:
            return
        self._parts_until_more -= 1
        if self._parts_until_more > 0:
            return
        self._max_tokens *= 2
        self._parts_until_more = _STEPS_UNTIL_MORE
        if self._max_tokens >= self._largest:
            self._max_tokens, self._largest = None, 0
