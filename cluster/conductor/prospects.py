"""All that a policy decides from: what is predicted of each worker for one request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from cluster.conductor.columns import Field, Floats
from cluster.conductor.context import Context
from cluster.conductor.decoding import Decoding
from cluster.conductor.index import Match, Slot, bits
from cluster.conductor.prefilling import Prefilling
from cluster.conductor.types import Request
from cluster.conductor.view import ModelView, Nearness


@dataclass(frozen=True, slots=True)
class LinkUse:
    """Of the network link of a node."""

    slot: Slot
    seconds: float


class Prospects:
    """Rows are those of the view: prefill workers, then decode workers."""

    def __init__(self, context: Context, view: ModelView, match: Match, values: Floats) -> None:
        """`values`: of `Columns`; copied, so that later changes do not show."""
        self.context = context
        self.view = view
        size = context.layout.block_size_tokens
        link_s = np.maximum(values[Field.LINK_UNTIL_S].take(view.link_slots) - context.now_s, 0.0)
        self._all = Prefilling(
            context,
            view.members,
            values.take(view.slots, axis=1),
            _own_tokens(view, match, size),
            view.has_node,
            match.on_nodes * size,
            link_s,
        )

    @property
    def request(self) -> Request:
        return self.context.request

    @cached_property
    def prefill(self) -> Prefilling | None:
        """None: no prefill workers, or none to be used."""
        if not self.view.num_prefills or self.request.bypass_cache:
            return None
        return self._all.part(slice(0, self.view.num_prefills))

    @cached_property
    def alone(self) -> Prefilling:
        """The decode workers, were they to compute the prompt by themselves."""
        if not self.view.num_prefills:
            return self._all
        return self._all.part(slice(self.view.num_prefills, None))

    @property
    def prefillers(self) -> Prefilling:
        """Whoever computes prompts here."""
        return self.prefill or self.alone

    @cached_property
    def decode(self) -> Decoding:
        return Decoding(self.context, self.alone)

    @property
    def nearness(self) -> Nearness:
        return self.view.nearness

    @cached_property
    def cached_blocks(self) -> int:
        """How far anybody has the prompt."""
        tokens = max(float(self._all.own_tokens.max(initial=0)), self._all.on_nodes)
        return int(tokens) // self.context.layout.block_size_tokens

    def join_s(self, prefill: int | None, decode: int) -> float:
        """For this decode worker to take the prompt over from this prefill worker."""
        if prefill is None:
            return 0.0
        here, there = self.view.prefills[prefill], self.view.decodes[decode]
        if not self.view.has_node[prefill]:
            return float(self.decode.join_cold_s[decode])
        if here.zone != there.zone:
            return float(self.decode.join_far_s[decode])
        if here.node_id != there.node_id:
            return float(self.decode.join_zone_s[decode])
        return float(self.decode.join_near_s[decode])

    def transfers(self, prefill: int | None, decode: int) -> list[LinkUse]:
        """What this pair brings over the network."""
        first = self.view.num_prefills
        if prefill is None:
            uses = [self._link_use(first + decode, self.alone.pulled_tokens(decode))]
        else:
            uses = [self._link_use(prefill, self.prefillers.pulled_tokens(prefill))]
            if self._crosses_network(prefill, decode):
                missing = float(self.decode.missing_tokens[decode])
                uses.append(self._link_use(first + decode, missing))
        return [use for use in uses if use.seconds > 0]

    def _link_use(self, row: int, tokens: float) -> LinkUse:
        byte_s = float(self._all.columns[Field.PULL_BYTE_S, row])
        seconds = tokens * self.context.layout.token_bytes * byte_s
        return LinkUse(int(self.view.link_slots[row]), seconds)

    def _crosses_network(self, prefill: int, decode: int) -> bool:
        if not self.view.has_node[prefill] or not self.alone.can_pull[decode]:
            return False
        return self.view.prefills[prefill].node_id != self.view.decodes[decode].node_id


def _own_tokens(view: ModelView, match: Match, block_size_tokens: int) -> Floats:
    """Prefixes by slot, into rows."""
    tokens = np.zeros((3, len(view.members)))
    if match.groups:
        members = [bits(group.workers) for group in match.groups]
        rows = view.row_of[list(chain.from_iterable(members))]
        blocks = np.array([group.blocks for group in match.groups])
        tokens[:, rows] = np.repeat(blocks, list(map(len, members)), axis=0).T * block_size_tokens
    return tokens
