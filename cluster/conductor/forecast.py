"""What decode workers will have to do at some later moment, from what was placed on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.conductor.columns import Floats, Slots


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """What a decode worker has, at some moment, of what this conductor placed on it."""

    sequences: int
    tokens: float


class Schedule:
    """When each placed sequence is expected to begin and to end decoding, in columns.

    A place is taken by `add` and given back by `remove`.
    """

    def __init__(self) -> None:
        self._slots: Slots = np.zeros(64, dtype=np.intp)
        self._joins_s: Floats = np.full(64, np.inf)
        self._leaves_s: Floats = np.zeros(64)
        self._tokens: Floats = np.zeros(64)
        self._free: list[int] = []
        self._used = 0

    def add(self, slot: int, joins_s: float, leaves_s: float, tokens: float) -> int:
        place = self._free.pop() if self._free else self._new()
        self._slots[place], self._tokens[place] = slot, tokens
        self._joins_s[place], self._leaves_s[place] = joins_s, leaves_s
        return place

    def remove(self, place: int) -> None:
        self._joins_s[place] = np.inf
        self._free.append(place)

    def joined(self, place: int, now_s: float) -> None:
        """It has begun to decode: earlier or later than was expected."""
        self._leaves_s[place] += now_s - self._joins_s[place]
        self._joins_s[place] = now_s

    def at(self, slot: int, moment_s: float, now_s: float) -> DecodeLoad:
        """On this worker. Who should have ended by now and has not, goes on for a while."""
        used = slice(0, self._used)
        leaves_s = self._leaves_s[used]
        there = (leaves_s > moment_s) | (leaves_s <= now_s)
        there &= self._joins_s[used] <= moment_s
        there &= self._slots[used] == slot
        return DecodeLoad(int(there.sum()), float(self._tokens[used][there].sum()))

    def _new(self) -> int:
        if self._used == len(self._slots):
            self._slots = np.concatenate([self._slots, np.zeros_like(self._slots)])
            self._joins_s = np.concatenate([self._joins_s, np.full_like(self._joins_s, np.inf)])
            self._leaves_s = np.concatenate([self._leaves_s, np.zeros_like(self._leaves_s)])
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._used += 1
        return self._used - 1
