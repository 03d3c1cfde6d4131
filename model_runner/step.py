"""What one forward pass computes, as index tensors that all its layers share.

The chunks of a step are packed into one row of tokens. Where K and V of each token go (its *slot*)
and what each token attends to (its *group*) is worked out once a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from kvstore.core.layout import KVLayout
from model_runner.kv_groups import BlockTable
from model_runner.paged_kv import token_slots
from model_runner.step_groups import Group, Grouping, Member, length_class, upload


@dataclass(frozen=True, slots=True)
class ForwardChunk:
    """New tokens of one sequence: positions [start, start + len(token_ids)).

    KV of all positions before `start` that its tokens see is in the blocks of `block_tables`, one
    for each KV group, which also have room for the new ones. They may be longer than needed.
    """

    token_ids: Sequence[int]
    start: int
    block_tables: Sequence[BlockTable]
    all_logits: bool = False
    """Logits of every token are wanted, not only of the last."""

    @property
    def num_logits(self) -> int:
        return len(self.token_ids) if self.all_logits else 1

    @property
    def logit_tokens(self) -> range:
        """Whose logits are wanted, by their place in `token_ids`."""
        return range(len(self.token_ids) - self.num_logits, len(self.token_ids))

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


class Step:
    """One packed row of chunks, for the layers of one KV group. Immutable to its users; one forward
    pass, one thread."""

    def __init__(
        self,
        chunks: Sequence[ForwardChunk],
        layout: KVLayout,
        device: torch.device,
        kv_group: int = 0,
    ) -> None:
        assert chunks
        size, order = layout.block_size_tokens, _row_order(chunks)
        row = [chunks[number] for number in order]
        members = list(_members(row, kv_group))
        for member in members:
            assert 0 <= member.start < member.end <= member.table.end * size
        offsets = {number: member.offset for number, member in zip(order, members, strict=True)}
        self.token_ids, self.positions, self.logit_tokens, blocks, self.opened_blocks = upload(
            device,
            [token_id for chunk in row for token_id in chunk.token_ids],
            [position for member in members for position in member.positions],
            [offsets[n] + t for n, chunk in enumerate(chunks) for t in chunk.logit_tokens],
            [
                member.table.block_ids[position // size - member.table.first]
                for member in members
                for position in member.positions
            ],
            list(_opened_blocks(members, size)),
        )
        self.slots = token_slots(layout, blocks, self.positions % size)
        self._grouping = Grouping(members, self.positions, layout)
        self._groups: dict[int | None, Sequence[Group]] = {}

    def groups(self, window: int | None) -> Sequence[Group]:
        """Who attends with whom, where a token sees itself and the `window` - 1 before it (all,
        with None). Computed at the first layer that asks."""
        if window not in self._groups:
            self._groups[window] = list(self._grouping.groups(window))
        return self._groups[window]


def _row_order(chunks: Sequence[ForwardChunk]) -> list[int]:
    """The numbers of the chunks, those beside each other that attend together."""
    classes = [length_class(len(chunk.token_ids), chunk.end) for chunk in chunks]
    return sorted(range(len(chunks)), key=classes.__getitem__)


def _members(row: Sequence[ForwardChunk], kv_group: int) -> Iterator[Member]:
    ends = accumulate(len(chunk.token_ids) for chunk in row)
    for chunk, end in zip(row, ends, strict=True):
        offset = end - len(chunk.token_ids)
        yield Member(chunk.start, chunk.end, offset, chunk.block_tables[kv_group])


def _opened_blocks(members: Sequence[Member], block_size: int) -> Iterator[int]:
    """Blocks that get their first token in this step and are not filled by it."""
    for member in members:
        last_block, filled = divmod(member.end, block_size)
        if filled and member.start <= last_block * block_size:
            yield member.table.block_ids[last_block - member.table.first]
