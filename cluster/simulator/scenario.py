"""Everything that one run depends on, each by a name, so that any of it can be varied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from cluster.conductor.policies.base import Policy
from cluster.conductor.types import Targets
from cluster.demo.trace import TraceRequest
from cluster.simulator.options import SimulationOptions
from cluster.simulator.profiles import Profile, dynamo_mocker_profile, with_values
from cluster.simulator.report import Report
from cluster.simulator.simulation import Simulation
from cluster.simulator.workload import expand, with_hot_prefix, without_reuse
from kvstore.core.errors import ConfigurationError

WORKLOADS: Mapping[str, Callable[[Sequence[TraceRequest]], Sequence[TraceRequest]]] = {
    "recorded": lambda trace: trace,
    "no-reuse": without_reuse,
    "hot-prefix": lambda trace: with_hot_prefix(trace, share=0.8, prefix_blocks=8),
}
"""The trace as it is; with prompts that share nothing; with one prefix of 4,096 tokens in 80 % of
its requests and nothing else shared."""

_BYTES_PER_GBPS = 1e9 / 8
_SCALED: Mapping[str, tuple[str, float]] = {
    "slo_ttft_ms": ("ttft_s", 1e-3),
    "slo_itl_ms": ("itl_s", 1e-3),
    "event_delay_ms": ("event_delay_s", 1e-3),
    "network_gbps": ("network_bytes_per_s", _BYTES_PER_GBPS),
}
"""Names with a unit of their own → (field, what one is worth there)."""


@dataclass(frozen=True)
class Scenario:
    profile: Profile = field(default_factory=dynamo_mocker_profile)
    workload: str = "recorded"
    speedup: float = 1.0
    choices: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SimulationOptions`, and of its `Targets`."""

    @property
    def title(self) -> str:
        """What was chosen, in short."""
        chosen = [f"{name} {value}" for name, value in sorted(self.choices.items())]
        return ", ".join([f"workload {self.workload}", f"speedup {self.speedup:g}", *chosen])

    def varied(self, settings: Mapping[str, Any]) -> Scenario:
        """Some of it set: fields of `Profile`, `SimulationOptions` and `Targets`, `workload`,
        `speedup`, and names in other units (slo_ttft_ms, slo_itl_ms, event_delay_ms, network_gbps).
        Values may be text.

        Raises ConfigurationError for an unknown name, or text that is no value of it.
        """
        own: dict[str, Any] = {}
        profile: dict[str, Any] = {}
        choices = dict(self.choices)
        for name, value in settings.items():
            target, factor = _SCALED.get(name, (name, 1.0))
            kind = _KINDS.get(target)
            if kind is None:
                raise ConfigurationError(f"{name}: unknown; known are {', '.join(known_names())}")
            parsed = _parse(name, value, kind.type)
            where = {"scenario": own, "profile": profile, "options": choices}[kind.owner]
            where[target] = parsed * factor if factor != 1.0 else parsed
        return replace(self, **own, profile=with_values(self.profile, profile), choices=choices)

    def options(self) -> SimulationOptions:
        """Raises ConfigurationError for what makes no cluster."""
        targets = {name: self.choices[name] for name in _TARGETS if name in self.choices}
        others = {name: value for name, value in self.choices.items() if name not in _TARGETS}
        return SimulationOptions(profile=self.profile, targets=Targets(**targets), **others)

    def run(self, trace: Sequence[TraceRequest], policy: Policy | None = None) -> Report:
        """With a policy of one's own, or the one that is named. Raises ConfigurationError."""
        if self.workload not in WORKLOADS:
            raise ConfigurationError(f"workload {self.workload!r}: one of {', '.join(WORKLOADS)}")
        options = self.options()
        requests = expand(
            WORKLOADS[self.workload](trace),
            block_size_tokens=self.profile.block_size_tokens,
            speedup=self.speedup,
        )
        return Simulation(requests, options, policy).run()


@dataclass(frozen=True, slots=True)
class _Kind:
    owner: str
    type: str


_TARGETS = tuple(target.name for target in fields(Targets))
_KINDS: Mapping[str, _Kind] = {
    **{f.name: _Kind("profile", str(f.type)) for f in fields(Profile) if f.name != "name"},
    **{
        f.name: _Kind("options", str(f.type))
        for f in fields(SimulationOptions)
        if f.name not in ("profile", "targets")
    },
    **{name: _Kind("options", "float") for name in _TARGETS},
    "workload": _Kind("scenario", "str"),
    "speedup": _Kind("scenario", "float"),
}


def known_names() -> list[str]:
    return sorted({*_KINDS, *_SCALED})


def _parse(name: str, value: Any, kind: str) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError as error:
        raise ConfigurationError(f"{name}={value}: not a number ({kind})") from error
    if kind == "bool":
        if text not in ("true", "false"):
            raise ConfigurationError(f"{name}={value}: true or false")
        return text == "true"
    return text
