"""How the engine's thread tells the one that publishes how far a step is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum

import torch

from kvstore.core.ids import BlockHash

Mark = Callable[[], torch.cuda.Event | None]
"""What the device has been asked to do by now, see `DeviceCache.mark`."""


class End(Enum):
    FINISHED = 1
    ABANDONED = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """As of the last word."""

    layers: Sequence[int]
    """Computed so far, in the order in which they were told."""
    mark: torch.cuda.Event | None
    """After it they are."""
    end: End | None = None
    without: Set[BlockHash] = frozenset()


class LayerProgress:
    """Implements `LayerWriter` for the engine's thread; `wait` is for one other thread.

    That one is woken for `batch` layers at a time, and for the end: to hand over every layer alone
    would cost both threads more than the copy of a small one.
    """

    def __init__(self, batch: int, mark: Mark) -> None:
        self._batch = batch
        self._mark = mark
        self._changed = threading.Condition()
        self._layers: list[int] = []
        self._progress = Progress((), None)

    def layer_computed(self, layer: int) -> None:
        self._layers.append(layer)
        if len(self._layers) % self._batch == 0:
            self._tell(None)

    def finish(self, without: Set[BlockHash] = frozenset()) -> None:
        self._tell(End.FINISHED, without)

    def abandon(self) -> None:
        self._tell(End.ABANDONED)

    def wait(self, num_seen: int, timeout_s: float) -> Progress:
        """Until there are more than `num_seen` layers, or the step is over. When the time is, it
        counts as abandoned."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_more(num_seen), timeout_s):
                self._progress = replace(self._progress, end=End.ABANDONED)
            return self._progress

    def _has_more(self, num_seen: int) -> bool:
        return self._progress.end is not None or len(self._progress.layers) > num_seen

    def _tell(self, end: End | None, without: Set[BlockHash] = frozenset()) -> None:
        progress = Progress(tuple(self._layers), self._mark(), end, without)
        with self._changed:
            self._progress = progress
            self._changed.notify()


def finished() -> LayerProgress:
    """Of a step that was over before."""
    progress = LayerProgress(1, lambda: None)
    progress.finish()
    return progress
