"""The instances and nodes of a simulated cluster, and how the conductor hears of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from cluster.conductor.conductor import Conductor
from cluster.conductor.feed import IndexFeed
from cluster.conductor.types import Load, Member, ModelInfo, Role
from cluster.simulator.events import Timeline
from cluster.simulator.instance import Instance, Owner
from cluster.simulator.options import SimulationOptions
from cluster.simulator.profiles import Profile
from cluster.simulator.stores import NodeStore
from kvstore.core.ids import BlockHash, BlockKeys, MemberId, NodeId
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import TierKind

MODEL = "simulated"


class Unit:
    """One instance with the node of its host, and both as members of the cluster."""

    def __init__(self, instance: Instance, role: Role, model: ModelInfo) -> None:
        self.instance = instance
        self.epoch = 1
        node_id = instance.node.node_id
        self.worker = Member(instance.member_id, role, "", node_id, model=model)
        self.node = Member(MemberId(node_id), Role.NODE, "", node_id)
        self.worker_feed: IndexFeed | None = None
        self.node_feed: IndexFeed | None = None
        self.told = Load()
        """What the last heartbeat said."""


class Fleet:
    """Registers units, beats their hearts and passes their block events on, late if asked to."""

    def __init__(
        self, options: SimulationOptions, timeline: Timeline, conductor: Conductor, owner: Owner
    ) -> None:
        self._options = options
        self._timeline = timeline
        self._conductor = conductor
        self._layout = layout_of(options.profile)
        self._late: deque[tuple[float, Callable[[], None]]] = deque()
        """Events on their way to the conductor, in order."""
        self.units: dict[MemberId, Unit] = {}
        self._build(owner)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units.values())

    def nodes(self) -> Iterator[NodeStore]:
        return (unit.instance.node for unit in self)

    def alive(self, member_id: MemberId) -> bool:
        return self.units[member_id].instance.alive

    def start(self) -> None:
        for unit in self:
            self.register(unit)
        self._timeline.after(self._options.heartbeat_s, self._beat, background=True)

    def register(self, unit: Unit) -> None:
        unit.node_feed = self._conductor.register(unit.node, unit.epoch)
        unit.worker_feed = self._conductor.register(unit.worker, unit.epoch)
        unit.told = unit.instance.load_now()
        self._conductor.heartbeat(unit.worker.member_id, unit.epoch, unit.told)

    def device_changed(
        self, instance: Instance, stored: Sequence[BlockHash], removed: Sequence[BlockHash]
    ) -> None:
        unit = self.units[instance.member_id]
        self._tell(lambda: unit.worker_feed, TierKind.DEVICE, stored, removed)

    def deliver(self) -> None:
        """Events that are visible by now."""
        while self._late and self._late[0][0] <= self._timeline.now_s:
            self._late.popleft()[1]()

    def _tell(
        self,
        feed: Callable[[], IndexFeed | None],
        tier: TierKind,
        stored: Sequence[BlockHash],
        removed: Sequence[BlockHash],
    ) -> None:
        target = feed()
        if target is None or not (stored or removed):
            return

        def tell() -> None:
            if removed:
                target.removed(tier, BlockKeys(self._layout.fingerprint, removed))
            if stored:
                target.stored(tier, BlockKeys(self._layout.fingerprint, stored))

        if self._options.event_delay_s:
            self._late.append((self._timeline.now_s + self._options.event_delay_s, tell))
        else:
            tell()

    def _beat(self) -> None:
        """A heartbeat that says nothing new is left out, unless silence means death."""
        self.deliver()
        for unit in self:
            if unit.instance.alive:
                load = unit.instance.load_now()
                if load != unit.told or self._options.has_failures:
                    unit.told = load
                    self._conductor.heartbeat(unit.worker.member_id, unit.epoch, load)
                if self._options.has_failures:
                    self._conductor.heartbeat(unit.node.member_id, unit.epoch, Load())
        self._conductor.expire()
        self._timeline.after(self._options.heartbeat_s, self._beat, background=True)

    def _build(self, owner: Owner) -> None:
        options = self._options
        model = ModelInfo(MODEL, b"simulated", self._layout, 1 << 30, "")
        counts = {"worker": options.workers, "prefill": options.prefill, "decode": options.decode}
        for kind, count in counts.items():
            role = Role.PREFILL if kind == "prefill" else Role.DECODE
            for number in range(count):
                # In order of id, as the conductor lists them.
                name = f"{kind}-{number:05}"
                node = self._make_node(NodeId(f"node-of-{name}"), MemberId(name))
                instance = Instance(
                    MemberId(name),
                    options.profile,
                    node,
                    self._timeline,
                    owner,
                    decodes=role is Role.DECODE,
                )
                self.units[instance.member_id] = Unit(instance, role, model)

    def _make_node(self, node_id: NodeId, member_id: MemberId) -> NodeStore:
        profile = self._options.profile
        return NodeStore(
            node_id,
            capacity_blocks=profile.host_blocks,
            policy=self._options.eviction,
            network_bytes_per_s=profile.network_bytes_per_s,
            clock=self._timeline,
            changed=lambda stored, removed: self._tell(
                lambda: self.units[member_id].node_feed, TierKind.HOST, stored, removed
            ),
        )


def layout_of(profile: Profile) -> KVLayout:
    """A layout whose blocks have the profile's size: 2 bytes a value, K and V of one layer."""
    return KVLayout(1, 1, profile.kv_token_bytes // 4, profile.block_size_tokens, "float16")
