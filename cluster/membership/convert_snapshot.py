"""Between the messages of snapshot.proto and what a conductor keeps; what is read is checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cluster.conductor.cost import Kind
from cluster.conductor.holders import EXPECTED, TIERS, Slot
from cluster.conductor.kept import KeptMember, KeptRun, KeptState, Learned
from cluster.conductor.routing_keys import KEY_BYTES, RoutingKeys
from cluster.membership.convert import load_from, load_to, member_from, member_to
from cluster.membership.views import Position
from cluster.wire.v1 import snapshot_pb2 as pb
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import FINGERPRINT_BYTES, LayoutFingerprint, MemberId
from kvstore.core.regression import LinearState
from kvstore.tiers.base import TierKind

VERSION = 1


def header_to(state: KeptState, positions: Mapping[MemberId, Position]) -> pb.SnapshotHeader:
    return pb.SnapshotHeader(
        version=VERSION,
        members=[_member_to(kept, positions.get(kept.member.member_id)) for kept in state.members],
        fleets=[
            pb.SnapshotFleet(model=name, learned=_learned_to(learned))
            for name, learned in state.fleets.items()
        ],
        answer_tokens=state.answer_tokens,
        charged=state.charged,
    )


def state_from(header: pb.SnapshotHeader) -> KeptState:
    if header.version != VERSION:
        raise InvalidArgumentError(f"version {header.version}; this program writes {VERSION}")
    members = [_member_from(message) for message in header.members]
    for what in ({m.slot for m in members}, {m.member.member_id for m in members}):
        if len(what) != len(members):
            raise InvalidArgumentError("a member is there twice")
    return KeptState(
        members=members,
        fleets={fleet.model: _learned_from(fleet.learned) for fleet in header.fleets},
        answer_tokens=_amounts_from(header.answer_tokens),
        charged=_amounts_from(header.charged),
    )


def positions_from(header: pb.SnapshotHeader, void: Iterable[Slot]) -> dict[MemberId, Position]:
    broken = set(void)
    return {
        MemberId(message.member.member_id): _position_from(message.position)
        for message in header.members
        if message.HasField("position") and message.number not in broken
    }


def blocks_to(runs: Sequence[KeptRun]) -> pb.SnapshotBlocks:
    """Each set of holders once."""
    numbers: dict[tuple[int, ...], int] = {}
    packed = [
        pb.SnapshotRun(
            keys=run.keys.packed,
            ends=run.ends,
            held=[numbers.setdefault(tuple(places), len(numbers)) for places in run.held],
        )
        for run in runs
    ]
    return pb.SnapshotBlocks(holders=[pb.Places(places=p) for p in numbers], runs=packed)


def runs_from(message: pb.SnapshotBlocks) -> Iterator[KeptRun]:
    holders = [list(places.places) for places in message.holders]
    if any(place % len(TIERS) == EXPECTED for places in holders for place in places):
        raise InvalidArgumentError("blocks in no tier")
    for run in message.runs:
        ends, blocks = list(run.ends), len(run.keys) // KEY_BYTES
        rising = all(a < b for a, b in zip([0, *ends], ends, strict=False))
        if len(run.keys) % KEY_BYTES or not ends or ends[-1] != blocks or not rising:
            raise InvalidArgumentError("stretches that do not fit their run")
        if len(run.held) != len(ends) or max(run.held) >= len(holders):
            raise InvalidArgumentError("stretches without holders")
        yield KeptRun(RoutingKeys(run.keys), ends, [holders[number] for number in run.held])


def _member_to(kept: KeptMember, position: Position | None) -> pb.SnapshotMember:
    message = pb.SnapshotMember(
        number=kept.slot,
        member=member_to(kept.member),
        epoch=kept.epoch,
        load=load_to(kept.load),
        draining=kept.draining,
        learned=_learned_to(kept.learned),
    )
    if position is not None:
        layouts = {int(tier): bytes(layout) for tier, layout in position.layouts.items()}
        message.position.CopyFrom(
            pb.EventPosition(epoch=position.epoch, sequence=position.sequence, layouts=layouts)
        )
    return message


def _member_from(message: pb.SnapshotMember) -> KeptMember:
    return KeptMember(
        slot=message.number,
        member=member_from(message.member),
        epoch=message.epoch,
        load=load_from(message.load),
        draining=message.draining,
        learned=_learned_from(message.learned),
    )


def _position_from(message: pb.EventPosition) -> Position:
    tiers = {int(tier) for tier in TierKind}
    for tier, layout in message.layouts.items():
        if tier not in tiers or len(layout) != FINGERPRINT_BYTES:
            raise InvalidArgumentError("a layout of no tier")
    layouts = {TierKind(tier): LayoutFingerprint(name) for tier, name in message.layouts.items()}
    return Position(message.epoch, message.sequence, layouts)


def _learned_to(learned: Learned) -> list[pb.LearnedModel]:
    return [
        pb.LearnedModel(
            kind=kind.name,
            coefficients=state.coefficients,
            least=state.least,
            certainty=state.certainty,
            moment=state.moment,
            observations=state.observations,
        )
        for kind, state in learned.items()
    ]


def _learned_from(messages: Iterable[pb.LearnedModel]) -> dict[Kind, LinearState]:
    learned = {}
    for message in messages:
        if message.kind not in Kind.__members__:
            raise InvalidArgumentError(f"nothing is learned of {message.kind!r}")
        learned[Kind[message.kind]] = LinearState(
            tuple(message.coefficients),
            tuple(message.least),
            tuple(message.certainty),
            tuple(message.moment),
            message.observations,
        )
    return learned


def _amounts_from(amounts: Mapping[str, float]) -> dict[str, float]:
    if not all(0 <= amount < math.inf for amount in amounts.values()):
        raise InvalidArgumentError("an amount that is none")
    return dict(amounts)
