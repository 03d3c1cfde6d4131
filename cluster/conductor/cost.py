"""What a request costs on a worker: predicted from its size, learned from how requests went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from cluster.conductor.columns import Columns, Field
from kvstore.core.regression import LinearModel, LinearState

_TOKENS = 1e3
_PAIRS = 1e6
_BYTES = 1e9
_SEQUENCES = 10.0
_HELD_TOKENS = 1e5


class Kind(Enum):
    """What is learned, with the first of its columns."""

    PREFILL = Field.PREFILL_S
    LOAD = Field.LOAD_S
    STEP = Field.STEP_S


_PRIORS: Mapping[Kind, Sequence[float]] = {
    Kind.PREFILL: (0.005, 0.1, 0.01),
    Kind.LOAD: (0.002, 0.5, 2.0, 0.003, 1.0),
    Kind.STEP: (0.02, 0.01, 0.002),
}
"""Seconds of one unit of each feature, on good hardware: nothing is ruled out before it is tried.
"""

_UNITS: Mapping[Kind, Sequence[float]] = {
    Kind.PREFILL: (1.0, _TOKENS, _PAIRS),
    Kind.LOAD: (1.0, _BYTES, _BYTES, 1.0, _BYTES),
    Kind.STEP: (1.0, _SEQUENCES, _HELD_TOKENS),
}
"""Of each feature, so that features are about 1 where models are learned."""

_EXPERIENCED = 20
"""So many observations of the fleet say something about a worker that has none yet."""


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """Prompt tokens to compute at the end of a prompt."""

    computed_tokens: int
    prompt_tokens: int

    @property
    def features(self) -> tuple[float, ...]:
        """A step; tokens; pairs of a token and one that it attends to."""
        computed = self.computed_tokens
        pairs = computed * (self.prompt_tokens - computed / 2)
        return 1.0, computed / _TOKENS, pairs / _PAIRS


@dataclass(frozen=True, slots=True)
class LoadWork:
    """Bytes to bring into the device tier."""

    host_bytes: int = 0
    disk_bytes: int = 0
    remote_bytes: int = 0

    @property
    def features(self) -> tuple[float, ...]:
        """The way to the worker and back; host; disk; asking another node; what it sends."""
        host, disk = self.host_bytes / _BYTES, self.disk_bytes / _BYTES
        return 1.0, host, disk, float(self.remote_bytes > 0), self.remote_bytes / _BYTES


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What a decode step has to do, on average."""

    sequences: float
    held_tokens: float

    @property
    def features(self) -> tuple[float, ...]:
        """A step; sequences in it; tokens that they attend to."""
        return 1.0, self.sequences / _SEQUENCES, self.held_tokens / _HELD_TOKENS


class FleetCost:
    """What is known of the workers of one model. Each is judged by its own experience, or before it
    has any by that of all; it is kept in the columns, for predictions over all workers at once."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._fleet = {kind: LinearModel(prior) for kind, prior in _PRIORS.items()}
        self._own: dict[tuple[Kind, int], LinearModel] = {}
        self._slots: set[int] = set()

    def add(self, slot: int) -> None:
        """Idempotent: what is known of it stays."""
        self._slots.add(slot)
        for kind in Kind:
            self._write(kind, [slot], self._own.get((kind, slot), self._fleet[kind]))

    def remove(self, slot: int) -> None:
        self._slots.discard(slot)
        for kind in Kind:
            self._own.pop((kind, slot), None)

    def predict(self, slot: int, work: PrefillWork | LoadWork | DecodeWork) -> float:
        kind = _kind(work)
        return self._own.get((kind, slot), self._fleet[kind]).predict(work.features)

    def observe(self, slot: int, work: PrefillWork | LoadWork | DecodeWork, seconds: float) -> None:
        kind = _kind(work)
        fleet = self._fleet[kind]
        own = self._own.get((kind, slot))
        if own is None:
            own = self._own[kind, slot] = LinearModel(fleet.coefficients, doubt=_doubt(fleet))
        for model in (own, fleet):
            model.observe(work.features, seconds)
        self._write(kind, [slot], own)
        self._write(kind, [s for s in self._slots if (kind, s) not in self._own], fleet)

    def learned(self) -> Mapping[Kind, LinearState]:
        """Of all its workers together."""
        return {kind: model.state() for kind, model in self._fleet.items()}

    def learned_of(self, slot: int) -> Mapping[Kind, LinearState]:
        """Of one worker, as far as it has experience of its own."""
        return {kind: model.state() for (kind, of), model in self._own.items() if of == slot}

    def restore(self, fleet: Mapping[Kind, LinearState]) -> None:
        """What `learned` gave. Raises InvalidArgumentError for what is no state of a model."""
        for kind, state in fleet.items():
            model = self._fleet[kind] = LinearModel.of(state, len(_PRIORS[kind]))
            self._write(kind, [s for s in self._slots if (kind, s) not in self._own], model)

    def restore_of(self, slot: int, own: Mapping[Kind, LinearState]) -> None:
        """What `learned_of` gave; raises likewise."""
        for kind, state in own.items():
            model = self._own[kind, slot] = LinearModel.of(state, len(_PRIORS[kind]))
            self._write(kind, [slot], model)

    def _write(self, kind: Kind, slots: Sequence[int], model: LinearModel) -> None:
        for place, coefficient in enumerate(model.coefficients):
            unit = _UNITS[kind][place]
            self._columns.values[kind.value + place, slots] = coefficient / unit


def _kind(work: PrefillWork | LoadWork | DecodeWork) -> Kind:
    if isinstance(work, PrefillWork):
        return Kind.PREFILL
    return Kind.LOAD if isinstance(work, LoadWork) else Kind.STEP


def _doubt(fleet: LinearModel) -> float:
    """How far off the fleet may be about a worker, as a multiple of itself."""
    return 1.0 if fleet.observations >= _EXPERIENCED else 30.0
