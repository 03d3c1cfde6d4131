"""What each worker would do as the decode worker of a request, all workers at once."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cluster.conductor.columns import STALL_MEMORY_S, Field, Flags, Floats
from cluster.conductor.context import Context
from cluster.conductor.prefilling import Prefilling
from cluster.conductor.types import DecodeCandidate

_BUSY_MAX = 0.9
"""A worker is taken to leave at least a tenth of its time to decoding."""


class Decoding:
    """Columns with a number for each of `members`; computed when they are first asked for.

    A decode step takes as long as its sequences and the tokens that they attend to make it. Prompts
    that the worker computes in between stretch the time from token to token.
    """

    def __init__(self, context: Context, alone: Prefilling) -> None:
        """`alone`: what they would take to compute the prompt by themselves."""
        self.members = alone.members
        self.columns = alone.columns
        self._context = context
        self._alone = alone

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def sequences(self) -> Floats:
        """Placed there or, if it reports more (somebody else's), reported."""
        c = self.columns
        sequences: Floats = np.maximum(c[Field.RUNNING], c[Field.SEQUENCES])
        return sequences

    @cached_property
    def itl_before_s(self) -> Floats:
        """Time between tokens without this request."""
        seconds: Floats = self._step_s / self._idle
        return seconds

    @cached_property
    def itl_s(self) -> Floats:
        """With it, if its prompt is computed elsewhere."""
        seconds: Floats = self._joined_s / self._idle
        return seconds

    @cached_property
    def itl_alone_s(self) -> Floats:
        """With it, if its prompt is computed here, too, and as many such prompts as lately."""
        seconds: Floats = self._joined_s / _idle(self._alone.stall_s + self._alone.ready_s)
        return seconds

    @cached_property
    def fits(self) -> Flags:
        """Whether the sequence's blocks fit beside those of the others."""
        c = self.columns
        free = np.minimum(c[Field.FREE_BLOCKS], c[Field.TOTAL_BLOCKS] - c[Field.PROMISED_BLOCKS])
        fits: Flags = free >= self._context.blocks_needed
        return fits

    @cached_property
    def targeted(self) -> Floats:
        """Sequences there that have a target for the time between tokens."""
        counts: Floats = self.columns[Field.TARGETED]
        return counts

    @cached_property
    def tightness(self) -> Floats:
        """Mean 1/target of those, in 1/s."""
        tightness: Floats = self.columns[Field.TIGHTNESS] / np.maximum(self.targeted, 1.0)
        return tightness

    @cached_property
    def join_near_s(self) -> Floats:
        """To take the prompt over from a prefill worker of the same node: load its blocks."""
        c, token_bytes = self.columns, self._context.layout.token_bytes
        missing = np.maximum(self._full_tokens - self._alone.tokens[0], 0.0)
        seconds: Floats = c[Field.LOAD_S] + c[Field.LOAD_HOST_BYTE_S] * (missing * token_bytes)
        return seconds

    @cached_property
    def join_zone_s(self) -> Floats:
        """From another node of the zone: pull what its node does not have."""
        return self._join_pulled_s(1.0)

    @cached_property
    def join_far_s(self) -> Floats:
        """From a node of another zone."""
        return self._join_pulled_s(self._context.across_zones)

    @cached_property
    def join_cold_s(self) -> Floats:
        """From a worker whose blocks nobody can get at: load what is here, compute the rest."""
        return self._alone.ready_s

    @cached_property
    def missing_tokens(self) -> Floats:
        """Of the prompt's full blocks, those that its node has not."""
        missing: Floats = np.maximum(self._full_tokens - self._alone.own_tokens, 0.0)
        return missing

    def pace_s(self, row: int, sequences: float, tokens: float) -> float:
        """Time between tokens of the request, were there so many others when it joins."""
        c = self.columns[:, row]
        sequences += 1 + max(0.0, float(c[Field.RUNNING] - c[Field.SEQUENCES]))
        tokens += self._context.tokens_held
        step_s = c[Field.STEP_S] + c[Field.STEP_SEQUENCE_S] * sequences
        busy = min(float(self._alone.stall_s[row]) / STALL_MEMORY_S, _BUSY_MAX)
        return float(step_s + c[Field.STEP_TOKEN_S] * tokens) / (1 - busy)

    def candidate(self, row: int) -> DecodeCandidate:
        """The terms of one worker."""
        return DecodeCandidate(
            member=self.members[row],
            itl_s=float(self.itl_s[row]),
            itl_alone_s=float(self.itl_alone_s[row]),
            itl_before_s=float(self.itl_before_s[row]),
            join_near_s=float(self.join_near_s[row]),
            join_zone_s=float(self.join_zone_s[row]),
            join_far_s=float(self.join_far_s[row]),
            join_cold_s=float(self.join_cold_s[row]),
            batch=int(self.sequences[row]) + 1,
            fits=bool(self.fits[row]),
        )

    @cached_property
    def _step_s(self) -> Floats:
        c = self.columns
        seconds: Floats = c[Field.STEP_S] + c[Field.STEP_SEQUENCE_S] * self.sequences
        seconds += c[Field.STEP_TOKEN_S] * c[Field.TOKENS]
        return seconds

    @cached_property
    def _joined_s(self) -> Floats:
        c = self.columns
        more_s = c[Field.STEP_SEQUENCE_S] + c[Field.STEP_TOKEN_S] * self._context.tokens_held
        seconds: Floats = self._step_s + more_s
        return seconds

    @cached_property
    def _idle(self) -> Floats:
        return _idle(self._alone.stall_s)

    @cached_property
    def _full_tokens(self) -> int:
        size = self._context.layout.block_size_tokens
        return self._context.request.prompt_tokens // size * size

    def _join_pulled_s(self, times: float) -> Floats:
        pulled_s = self.join_near_s + times * self._alone.pull_s(self.missing_tokens)
        sooner_s = np.minimum(pulled_s, self.join_cold_s)
        return np.where(self._alone.can_pull, sooner_s, self.join_cold_s)


def _idle(stall_s: Floats) -> Floats:
    """Share of its time that a worker does not spend on prompts."""
    idle: Floats = np.maximum(1.0 - stall_s * (1 / STALL_MEMORY_S), 1 - _BUSY_MAX)
    return idle
