"""Which tokens a sequence has, and how often they are in its output: what penalties look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class SeenTokens:
    """Distinct tokens of one sequence, in arrays that a batch can be put together from.

    Grows with the sequence: `read` costs O(1) for each new token, and memory is in proportion to
    the distinct tokens, not to the vocabulary. One thread.
    """

    __slots__ = ("_counts", "_ids", "_num_read", "_places")

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)
        self._num_read = 0

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Distinct tokens of prompt and output. Valid until the next `read`."""
        return self._ids[: len(self._places)]

    @property
    def output_counts(self) -> npt.NDArray[np.float32]:
        """How often each of `ids` is in the output. Valid until the next `read`."""
        return self._counts[: len(self._places)]

    def read(self, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Take notice of the tokens that came since the last call."""
        for position in range(self._num_read, len(token_ids)):
            place = self._place(token_ids[position])
            if position >= num_prompt_tokens:
                self._counts[place] += 1
        self._num_read = len(token_ids)

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[place] = token_id
        return place
