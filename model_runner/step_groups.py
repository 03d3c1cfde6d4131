"""Who attends with whom in a step, as index tensors that all layers share.

```
 row:      [ a ][ b ][ c0 c1 c2 c3 ]     a, b decode one token each; c is a prefill chunk
 groups:   (a, b) padded to the longer context, one mask      (c) exact length, causal
```
Decodes go together if `length_class` puts them beside each other, and as many at a time as may be
gathered. Each group is a slice of the row, in the row's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby

import torch

from kvstore.core.layout import KVLayout
from model_runner.kv_groups import BlockTable
from model_runner.paged_kv import block_rows, gather_bytes_max

_PREFILL = 0


def length_class(num_tokens: int, end: int) -> int:
    """Of a chunk of so many new tokens that ends at position `end`: chunks of one token attend
    together if they have the same. Padding then at most doubles what a sequence reads, as their
    lengths share their power of two."""
    return end.bit_length() if num_tokens == 1 else _PREFILL


@dataclass(frozen=True, slots=True)
class Member:
    """One chunk of a step: the new tokens at positions [start, end) of its sequence, which begin at
    `offset` of the packed row."""

    start: int
    end: int
    offset: int
    table: BlockTable

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def tokens(self) -> slice:
        return slice(self.offset, self.offset + self.num_tokens)

    @property
    def positions(self) -> range:
        return range(self.start, self.end)


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that attend together: the same number of new tokens each, keys padded to one
    length."""

    tokens: slice
    """Their places in the packed row, sequence by sequence."""
    num_sequences: int
    rows: torch.Tensor | None
    """`[k|v, sequence, kv_head, block]`: where the cache has the keys (see `block_rows`); None if
    the keys are just the new tokens'."""
    num_keys: int
    mask: torch.Tensor | None
    """`[sequence, 1, token, key]`, in the dtype of the KV: 0 where a token attends, -inf elsewhere;
    None for a causal square, or where all attend to all."""

    @property
    def is_causal(self) -> bool:
        """Each token attends to itself and the group's tokens before it."""
        return self.rows is None and self.mask is None


@dataclass(frozen=True, slots=True)
class _Seen:
    """The cached keys that a member's tokens see: whole blocks, up to the last token."""

    blocks: Sequence[int]
    start: int
    """Position of the first key."""
    num_keys: int


class Grouping:
    """The members of a packed row, in its order, which is that of their length classes."""

    def __init__(
        self, members: Sequence[Member], positions: torch.Tensor, layout: KVLayout
    ) -> None:
        """`positions`: of each token of the row, on the device that the groups are for."""
        self._members = members
        self._positions = positions
        self._layout = layout
        self._device = positions.device

    def groups(self, window: int | None) -> Iterator[Group]:
        """Where a token sees itself and the `window` - 1 before it (all, with None)."""
        for kind, alike in groupby(self._members, key=lambda m: length_class(m.num_tokens, m.end)):
            members = list(alike)
            if kind == _PREFILL:
                yield from (self._prefill_group(member, window) for member in members)
            else:
                yield from self._decode_groups(members, window)

    def _prefill_group(self, member: Member, window: int | None) -> Group:
        if member.start > 0:
            return self._cached_group([member], [self._seen(member, window)], window)
        fits = window is None or member.num_tokens <= window
        positions = torch.arange(member.num_tokens, device=self._device)
        return Group(
            tokens=member.tokens,
            num_sequences=1,
            rows=None,
            num_keys=member.num_tokens,
            mask=None if fits else self._mask(positions[None], positions[None], window),
        )

    def _decode_groups(self, members: Sequence[Member], window: int | None) -> Iterator[Group]:
        """As many at a time as may be gathered."""
        seen = [self._seen(member, window) for member in members]
        longest = max(len(one.blocks) for one in seen)
        each = max(1, gather_bytes_max(self._device) // (longest * self._layout.layer_bytes))
        for first in range(0, len(members), each):
            part = slice(first, first + each)
            yield self._cached_group(members[part], seen[part], window)

    def _cached_group(
        self, members: Sequence[Member], seen: Sequence[_Seen], window: int | None
    ) -> Group:
        """One chunk of any length, or several of one token each."""
        longest = max(len(one.blocks) for one in seen)
        # A table is padded with its own first block: whatever a masked key is, it must be finite
        # wherever the sequence's own keys are, as 0 * NaN is NaN.
        padding = ([one.blocks[0]] * (longest - len(one.blocks)) for one in seen)
        blocks, starts = upload(
            self._device,
            [b for one, more in zip(seen, padding, strict=True) for b in (*one.blocks, *more)],
            [one.start for one in seen],
        )
        tokens = slice(members[0].tokens.start, members[-1].tokens.stop)
        num_keys = max(one.num_keys for one in seen)
        mask = None
        if not _sees_all(members, seen, window):
            keys = starts[:, None] + torch.arange(num_keys, device=self._device)
            mask = self._mask(self._positions[tokens].view(len(members), -1), keys, window)
        return Group(
            tokens=tokens,
            num_sequences=len(members),
            rows=block_rows(self._layout, blocks.view(-1, longest)),
            num_keys=num_keys,
            mask=mask,
        )

    def _seen(self, member: Member, window: int | None) -> _Seen:
        size, end = self._layout.block_size_tokens, member.end
        first = 0 if window is None else max(0, member.start + 1 - window) // size
        return _Seen(member.table.part(first, -(-end // size)), first * size, end - first * size)

    def _mask(self, queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
        """Of `[sequence, query]`, `[sequence, key]` positions."""
        distance = queries[:, None, :, None] - keys[:, None, None, :]
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        dtype: torch.dtype = getattr(torch, self._layout.dtype)
        return torch.zeros(hidden.shape, dtype=dtype, device=self._device).masked_fill_(
            hidden, -torch.inf
        )


def upload(device: torch.device, *columns: Sequence[int]) -> Sequence[torch.Tensor]:
    """In one transfer: each costs a device as much as a small operation."""
    whole = torch.tensor(list(chain(*columns)), dtype=torch.int64, device=device)
    ends = accumulate(len(column) for column in columns)
    return [whole[end - len(column) : end] for column, end in zip(columns, ends, strict=True)]


def _sees_all(members: Sequence[Member], seen: Sequence[_Seen], window: int | None) -> bool:
    """Every token of the group attends to every key."""
    num_keys = seen[0].num_keys
    return all(
        member.num_tokens == 1
        and one.num_keys == num_keys
        and (window is None or num_keys <= window)
        for member, one in zip(members, seen, strict=True)
    )
