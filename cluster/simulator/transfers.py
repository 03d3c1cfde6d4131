"""KV on its way into an instance: from host memory, from other nodes, from a prefill instance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.simulator.instance import Instance
from cluster.simulator.links import Link, Network
from cluster.simulator.profiles import Profile
from cluster.simulator.sequence import SimSequence
from cluster.simulator.stores import NodeStore, longest_elsewhere


@dataclass(frozen=True, slots=True)
class _Plan:
    """Leading blocks of a prompt, by where they come from; the rest is computed."""

    device: int
    host: int = 0
    remote: int = 0
    source: NodeStore | None = None
    seconds: float = 0.0
    """Predicted, the computation of the rest included."""

    @property
    def total(self) -> int:
        return self.device + self.host + self.remote


class Transfers:
    """Decides what an instance loads rather than computes, as a node does by what it predicts, and
    moves it over the shared links."""

    def __init__(
        self, profile: Profile, network: Network, nodes: Callable[[], Iterable[NodeStore]]
    ) -> None:
        self._profile = profile
        self._network = network
        self._nodes = nodes
        self._sources: dict[SimSequence, tuple[Instance, list[int]]] = {}
        self.pulled_bytes = 0

    def load(self, instance: Instance, sequence: SimSequence) -> bool:
        """See `Surroundings.load`. Asks once for each sequence, when there is room."""
        if not self._profile.host_blocks or sequence.looked_up or sequence.table:
            return False
        plan = self._best_plan(instance, sequence)
        if plan.total == plan.device:
            sequence.looked_up = True
            return False
        instance.device.match(sequence)
        spare = instance.growth_blocks
        if not instance.device.lengthen(sequence, sequence.known_tokens, spare_blocks=spare):
            instance.device.release(sequence)
            sequence.computed = 0
            return False
        sequence.looked_up = True
        self._begin(instance, sequence, plan)
        return True

    def hold(self, instance: Instance, sequence: SimSequence) -> None:
        """Prefilled there; its blocks stay until `take_over` has moved them, or `drop`."""
        self._sources[sequence] = (instance, sequence.table)
        sequence.table = []

    def take_over(self, instance: Instance, sequence: SimSequence, found_blocks: int) -> None:
        """See `Surroundings.take_over`."""
        source, table = self._sources[sequence]
        links: list[Link] = []
        if self._profile.handover_over_network and source.node is not instance.node:
            links = [source.node.outbound, instance.node.inbound]

        def arrived() -> None:
            self.drop(sequence)
            instance.landed(sequence)

        length_bytes = (len(table) - found_blocks) * self._profile.block_bytes
        self._network.send(links, length_bytes, arrived)

    def drop(self, sequence: SimSequence) -> None:
        """Nobody will fetch its blocks (any more). No error if none are held."""
        held = self._sources.pop(sequence, None)
        if held is not None and held[0].alive:
            held[0].release(held[1])

    def forget(self, instance: Instance) -> list[SimSequence]:
        """It died; returns those whose blocks it held, and whose move is void."""
        lost = [seq for seq, (source, _) in self._sources.items() if source is instance]
        for sequence in lost:
            del self._sources[sequence]
        return lost

    def _best_plan(self, instance: Instance, sequence: SimSequence) -> _Plan:
        size = self._profile.block_size_tokens
        usable = min(len(sequence.blocks), (sequence.known_tokens - 1) // size)
        blocks = sequence.blocks[:usable]
        device = min(usable, instance.device.cached_blocks(sequence))
        host = instance.node.run_length(blocks, device)
        plans = [_Plan(device, seconds=self._compute_s(sequence, device))]
        host_s = self._load_s([instance.bus], host)
        if host:
            seconds = host_s + self._compute_s(sequence, device + host)
            plans.append(_Plan(device, host, seconds=seconds))
        nodes = self._nodes() if self._profile.pulls else ()
        found = longest_elsewhere(nodes, blocks, device + host, instance.node)
        if found is not None:
            source, remote = found
            pull_s = self._load_s(self._way(source, instance), remote)
            seconds = host_s + pull_s + self._compute_s(sequence, device + host + remote)
            plans.append(_Plan(device, host, remote, source, seconds))
        return min(plans, key=lambda plan: plan.seconds)

    def _begin(self, instance: Instance, sequence: SimSequence, plan: _Plan) -> None:
        size, block_bytes = self._profile.block_size_tokens, self._profile.block_bytes
        node, source = instance.node, plan.source
        on_host = sequence.blocks[plan.device : plan.device + plan.host]
        pulled = sequence.blocks[plan.device + plan.host : plan.total]
        node.begin_read(on_host)
        if source is not None:
            source.begin_read(pulled)
        incarnation = source.incarnation if source is not None else 0
        device = instance.device

        def pull_done() -> None:
            got = plan.total if source is None else plan.device + plan.host
            if source is not None and source.incarnation == incarnation:
                source.end_read(pulled)
                got = plan.total
            node.end_read(on_host)
            if instance.device is not device:
                return  # it died meanwhile
            sequence.computed = got * size
            sequence.host_tokens = plan.host * size
            sequence.remote_tokens = (got - plan.device - plan.host) * size
            self.pulled_bytes += len(pulled) * block_bytes
            device.name(sequence, plan.device * size, sequence.computed)
            node.put(pulled[: got - plan.device - plan.host])
            instance.loaded(sequence)

        def host_done() -> None:
            way = self._way(source, instance) if source is not None else []
            self._network.send(way, len(pulled) * block_bytes, pull_done)

        self._network.send([instance.bus], plan.host * block_bytes, host_done)

    def _way(self, source: NodeStore, instance: Instance) -> list[Link]:
        return [source.outbound, instance.node.inbound, instance.bus]

    def _load_s(self, links: list[Link], blocks: int) -> float:
        return self._network.predict_s(links, blocks * self._profile.block_bytes)

    def _compute_s(self, sequence: SimSequence, cached_blocks: int) -> float:
        """Of what is left of the prompt, in steps of the instance's budget."""
        done = cached_blocks * self._profile.block_size_tokens
        seconds, budget = 0.0, self._profile.max_batch_tokens
        while done < sequence.known_tokens:
            tokens = min(budget, sequence.known_tokens - done)
            seconds += self._profile.prefill_s(tokens, tokens * (done + tokens / 2))
            done += tokens
        return seconds
