"""Links whose bandwidth is shared by the flows on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from cluster.simulator.events import Timeline


@dataclass(eq=False)
class Link:
    """One direction of a network port, or the bus between host memory and a device."""

    bytes_per_s: float
    flows: set[int] = field(default_factory=set)

    @property
    def share_bytes_per_s(self) -> float:
        """Of each flow that is on it."""
        return self.bytes_per_s / max(1, len(self.flows))


@dataclass(eq=False)
class _Flow:
    links: Sequence[Link]
    left_bytes: float
    done: Callable[[], None]
    settled_s: float
    rate: float = 0.0
    version: int = 0


class Network:
    """Moves bytes over links. A link gives each of its flows the same share, and a flow goes at the
    smallest share of its links; what others leave unused there is not given away.

    Costs O(flows on the links concerned) for each flow that begins or ends.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._flows: dict[int, _Flow] = {}
        self._next_id = 0

    def send(self, links: Sequence[Link], length_bytes: float, done: Callable[[], None]) -> None:
        """Call `done` when so many bytes are through; before this returns if that takes no time."""
        if length_bytes <= 0 or all(link.bytes_per_s == inf for link in links):
            done()
            return
        flow_id, self._next_id = self._next_id, self._next_id + 1
        self._flows[flow_id] = _Flow(links, length_bytes, done, self._timeline.now_s)
        for link in links:
            link.flows.add(flow_id)
        self._share(links)

    def predict_s(self, links: Sequence[Link], length_bytes: float) -> float:
        """How long it would take if the flows that are there stayed and no other came."""
        if not links or not length_bytes:
            return 0.0
        return length_bytes / min(link.bytes_per_s / (len(link.flows) + 1) for link in links)

    def __len__(self) -> int:
        return len(self._flows)

    def _share(self, links: Sequence[Link]) -> None:
        """Rates have changed on these links."""
        for flow_id in sorted(set().union(*(link.flows for link in links))):
            flow = self._flows[flow_id]
            rate = min(link.share_bytes_per_s for link in flow.links)
            if rate != flow.rate:
                self._settle(flow)
                flow.rate = rate
                flow.version += 1
                self._timeline.after(
                    flow.left_bytes / rate,
                    lambda flow_id=flow_id, version=flow.version: self._end(flow_id, version),  # type: ignore[misc]
                )

    def _settle(self, flow: _Flow) -> None:
        now_s = self._timeline.now_s
        flow.left_bytes = max(0.0, flow.left_bytes - flow.rate * (now_s - flow.settled_s))
        flow.settled_s = now_s

    def _end(self, flow_id: int, version: int) -> None:
        flow = self._flows.get(flow_id)
        if flow is None or flow.version != version:
            return
        del self._flows[flow_id]
        for link in flow.links:
            link.flows.discard(flow_id)
        self._share(flow.links)
        flow.done()
