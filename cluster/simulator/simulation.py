"""A run: requests arrive, the production conductor places them, instances serve them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.policies.base import Policy
from cluster.conductor.types import Outcome, Placement, Request, TierTokens
from cluster.simulator.events import Timeline
from cluster.simulator.fleet import MODEL, Fleet, Unit
from cluster.simulator.instance import Instance
from cluster.simulator.links import Network
from cluster.simulator.options import SimulationOptions
from cluster.simulator.report import Report, Sample, make_report
from cluster.simulator.sequence import Ending, Record, SimSequence
from cluster.simulator.transfers import Transfers
from cluster.simulator.workload import SimRequest
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import MemberId, RequestId
from kvstore.tiers.device.pool import PoolEvents

_ATTEMPTS_MAX = 2
"""As the gateway has it."""
_SAMPLES = 512


def _make_policy(options: SimulationOptions) -> Policy:
    threshold = options.balancing_threshold
    return make_policy(options.policy, options.seed, balancing_threshold=threshold)


class Simulation:
    """One cluster and one workload, to be run once. The same input gives the same report, bit for
    bit.

    It plays the gateway: it asks the conductor, sends the request there, and asks again if that
    worker is dead or dies.
    """

    def __init__(
        self,
        requests: Sequence[SimRequest],
        options: SimulationOptions,
        policy: Policy | None = None,
    ) -> None:
        """`policy`: in place of the one that is named."""
        self._options = options
        self._timeline = Timeline()
        ttl_s = options.member_ttl_s if options.has_failures else inf
        self._conductor = Conductor(
            policy or _make_policy(options),
            self._timeline,
            member_ttl_s=ttl_s,
            admission=options.admission,
        )
        self._fleet = Fleet(options, self._timeline, self._conductor, self)
        self._network = Network(self._timeline)
        self._transfers = Transfers(options.profile, self._network, self._fleet.nodes)
        self._records = [Record(request) for request in requests]
        self._sequences: dict[Record, SimSequence] = {}
        """The attempt under way of each request that has arrived and not ended."""
        self._ended = 0
        self._random = np.random.default_rng(options.seed)
        self._samples: list[Sample] = []
        # What a client would ask for: nobody knows how long an answer gets.
        self._max_tokens = max(request.output_tokens for request in requests)

    def run(self) -> Report:
        self._fleet.start()
        for record in self._records:
            self._timeline.at(record.request.arrival_s, lambda record=record: self._place(record))  # type: ignore[misc]
        if self._options.has_failures:
            for unit in self._fleet:
                self._plan_failure(unit)
        span_s = self._records[-1].request.arrival_s
        self._sample_every(max(span_s / _SAMPLES, self._options.heartbeat_s))
        self._timeline.run(until=lambda: self._ended == len(self._records))
        assert self._ended == len(self._records), "the simulation came to rest with requests in it"
        return make_report(
            self._options,
            self._records,
            self._fleet,
            self._samples,
            self._conductor.statistics(),
            self._transfers.pulled_bytes,
        )

    @property
    def events(self) -> int:
        return self._timeline.events

    # Placing

    def _place(self, record: Record) -> None:
        """Until a live worker has it, or it has ended."""
        while record.ending is None:
            record.attempts += 1
            if record.attempts > _ATTEMPTS_MAX:
                self._end(record, Ending.FAILED, "every worker that had it died")
                return
            self._fleet.deliver()
            try:
                placement = self._conductor.route(self._ask(record))
            except KVStoreError as error:
                self._end(record, Ending.REJECTED, type(error).__name__)
                return
            if self._is_up(placement):
                self._send(record, placement)
                return

    def _ask(self, record: Record) -> Request:
        request = record.request
        return Request(
            request_id=RequestId(str(request.number)),
            model=MODEL,
            routing_keys=request.routing_keys,
            prompt_tokens=request.prompt_tokens,
            max_tokens=self._max_tokens,
            targets=self._options.targets,
        )

    def _is_up(self, placement: Placement) -> bool:
        prefill = placement.prefill or placement.decode
        return all(self._fleet.alive(m.member_id) for m in (prefill, placement.decode))

    def _send(self, record: Record, placement: Placement) -> None:
        record.decoder = placement.decode.member_id
        record.prefiller = (placement.prefill or placement.decode).member_id
        earlier = self._sequences.get(record)
        sequence = SimSequence(record, earlier.generated if earlier is not None else 0)
        sequence.hands_over = record.prefiller != record.decoder
        self._sequences[record] = sequence
        self._instance(record.prefiller).add(sequence)

    def _instance(self, member_id: MemberId) -> Instance:
        return self._fleet.units[member_id].instance

    # What instances tell

    def prefilled(self, instance: Instance, sequence: SimSequence) -> None:
        record = sequence.record
        if not self.joins(sequence):
            instance.release(sequence.table)
            return
        if not self._options.profile.first_token_at_decode:
            sequence.generated += 1
            record.see_first_token(self._timeline.now_s)
        if not sequence.tokens_left:
            instance.release(sequence.table)
            self.finished(instance, sequence)
            return
        self._transfers.hold(instance, sequence)
        assert record.decoder is not None
        decoder = self._instance(record.decoder)
        if decoder.alive:
            decoder.expect(sequence)
        else:
            self._transfers.drop(sequence)
            self._place(record)

    def joins(self, sequence: SimSequence) -> bool:
        record = sequence.record
        if record.first_token_s is not None:
            return True  # it goes on where another worker died
        try:
            self._conductor.joined(RequestId(str(record.request.number)))
        except KVStoreError as error:
            self._end(record, Ending.REJECTED, type(error).__name__)
            return False
        return True

    def finished(self, instance: Instance, sequence: SimSequence) -> None:
        record = sequence.record
        record.last_token_s = self._timeline.now_s
        self._end(record, Ending.COMPLETED)

    def impossible(self, instance: Instance, sequence: SimSequence) -> None:
        self._transfers.drop(sequence)
        self._end(sequence.record, Ending.FAILED, "larger than the device tier")

    def load(self, instance: Instance, sequence: SimSequence) -> bool:
        return self._transfers.load(instance, sequence)

    def take_over(self, instance: Instance, sequence: SimSequence, found_blocks: int) -> None:
        self._transfers.take_over(instance, sequence, found_blocks)

    def device_changed(self, instance: Instance, events: PoolEvents) -> None:
        self._fleet.device_changed(instance, events.stored, events.removed)

    # Ending

    def _end(self, record: Record, ending: Ending, reason: str = "") -> None:
        assert record.ending is None, "a request ends once"
        record.ending = ending
        record.reason = reason
        self._sequences.pop(record, None)
        self._ended += 1
        if ending is not Ending.REJECTED:
            self._conductor.complete(self._outcome(record))

    def _outcome(self, record: Record) -> Outcome:
        request_id = RequestId(str(record.request.number))
        if record.ending is Ending.FAILED:
            return Outcome(request_id, failed=True)
        return Outcome(
            request_id,
            ttft_s=record.ttft_s,
            prefill_compute_s=record.compute_s,
            computed_tokens=record.computed_tokens,
            itl_mean_s=record.itl_s or 0.0,
            output_tokens=record.request.output_tokens,
            queue_s=record.started_s - record.request.arrival_s,
            hits=TierTokens(record.device_tokens, record.host_tokens, remote=record.remote_tokens),
        )

    # Failures

    def _plan_failure(self, unit: Unit) -> None:
        delay_s = float(self._random.exponential(self._options.mtbf_s))
        self._timeline.after(delay_s, lambda: self._fail(unit), background=True)

    def _fail(self, unit: Unit) -> None:
        """Host and instance are gone; whoever waited for them asks again."""
        instance = unit.instance
        lost = [*instance.die(), *self._transfers.forget(instance)]
        instance.node.fail()
        self._timeline.after(self._options.repair_s, lambda: self._repair(unit))
        for sequence in dict.fromkeys(lost):
            self._lost(sequence)

    def _lost(self, sequence: SimSequence) -> None:
        record = sequence.record
        if self._sequences.get(record) is not sequence:
            return
        self._transfers.drop(sequence)
        record.unsee(self._timeline.now_s)
        if record.decoder is not None:
            self._instance(record.decoder).abandon(sequence)
        self._place(record)

    def _repair(self, unit: Unit) -> None:
        unit.instance.revive()
        unit.epoch += 1
        self._fleet.register(unit)
        self._plan_failure(unit)

    # Watching

    def _sample_every(self, period_s: float) -> None:
        loads = {unit.worker.member_id: unit.instance.load_now() for unit in self._fleet}
        prefill = [loads[u.worker.member_id] for u in self._fleet if self._prefills(u)]
        decode = [loads[u.worker.member_id] for u in self._fleet if u.instance.decodes]
        self._samples.append(
            Sample(
                self._timeline.now_s,
                sum(load.waiting_tokens for load in prefill),
                sum(load.running for load in decode),
            )
        )
        self._timeline.after(period_s, lambda: self._sample_every(period_s), background=True)

    def _prefills(self, unit: Unit) -> bool:
        return not unit.instance.decodes or not self._options.prefill
