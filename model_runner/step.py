"""What one forward pass computes, as index tensors that all its layers share.

The chunks of a step are packed into one row of tokens. Where K and V of each token go (its *slot*)
and what each token attends to (its *group*) is worked out here, once a step.

```
 row:      [ a ][ b ][ c0 c1 c2 c3 ]     a, b decode one token each; c is a prefill chunk
 groups:   (a, b) padded to the longer context, one mask      (c) exact length, causal
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch

from kvstore.core.layout import KVLayout


@dataclass(frozen=True, slots=True)
class ForwardChunk:
    """New tokens of one sequence: positions [start, start + len(token_ids)).

    KV of all positions before `start` is in the blocks of `block_table`, which also has room for
    the new ones. It may be longer than needed.
    """

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    all_logits: bool = False
    """Logits of every token are wanted, not only of the last."""

    @property
    def num_logits(self) -> int:
        return len(self.token_ids) if self.all_logits else 1

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that attend together: the same number of new tokens each, keys padded to one
    length."""

    tokens: slice | torch.Tensor
    """Their places in the packed row, sequence by sequence; a slice costs no copy."""
    num_sequences: int
    rows: torch.Tensor | None
    """`[k|v, sequence, kv_head, block]`: where the cache has the keys, for layer 0 (see
    `KVRows`); None if the keys are just the new tokens'."""
    num_keys: int
    mask: torch.Tensor | None
    """`[sequence, 1, token, key]`, true where a token attends; None for a causal square."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A chunk and its place in the packed row."""

    chunk: ForwardChunk
    offset: int

    @property
    def num_tokens(self) -> int:
        return len(self.chunk.token_ids)

    @property
    def tokens(self) -> slice:
        return slice(self.offset, self.offset + self.num_tokens)

    @property
    def logit_tokens(self) -> range:
        end = self.offset + self.num_tokens
        return range(end - self.chunk.num_logits, end)


class Step:
    """One packed row of chunks. Immutable to its users; one forward pass, one thread."""

    def __init__(
        self, chunks: Sequence[ForwardChunk], layout: KVLayout, device: torch.device
    ) -> None:
        assert chunks
        self._layout = layout
        self._device = device
        ends = accumulate(len(chunk.token_ids) for chunk in chunks)
        self._members = [
            _Member(chunk, end - len(chunk.token_ids))
            for chunk, end in zip(chunks, ends, strict=True)
        ]
        self._groups: dict[int | None, list[Group]] = {}
        for chunk in chunks:
            assert chunk.token_ids
            assert chunk.start >= 0
            assert chunk.end <= len(chunk.block_table) * layout.block_size_tokens
        self.token_ids = self._tensor([i for chunk in chunks for i in chunk.token_ids])
        self.positions = self._tensor([p for c in chunks for p in range(c.start, c.end)])
        self.logit_tokens = self._tensor([t for m in self._members for t in m.logit_tokens])
        size = layout.block_size_tokens
        self.slot_blocks = self._tensor(
            [c.block_table[p // size] for c in chunks for p in range(c.start, c.end)]
        )
        self.slot_offsets = self.positions % size
        self.opened_blocks = self._tensor(list(_opened_blocks(chunks, size)))

    def groups(self, window: int | None) -> Sequence[Group]:
        """Who attends with whom, where a token sees itself and the `window` - 1 before it (all,
        with None). Computed at the first layer that asks."""
        if window not in self._groups:
            self._groups[window] = list(self._make_groups(window))
        return self._groups[window]

    def _make_groups(self, window: int | None) -> Iterator[Group]:
        decodes = [m for m in self._members if m.num_tokens == 1]
        for member in self._members:
            if member.num_tokens > 1:
                yield self._prefill_group(member, window)
        # Padding at most doubles what a sequence reads: lengths in a group share their power of two
        for _, similar in groupby(sorted(decodes, key=_length_class), key=_length_class):
            yield self._cached_group(list(similar), window)

    def _prefill_group(self, member: _Member, window: int | None) -> Group:
        if member.chunk.start > 0:
            return self._cached_group([member], window)
        fits = window is None or member.num_tokens <= window
        positions = torch.arange(member.num_tokens, device=self._device)
        return Group(
            tokens=member.tokens,
            num_sequences=1,
            rows=None,
            num_keys=member.num_tokens,
            mask=None if fits else _visible(positions[None], positions[None], window),
        )

    def _cached_group(self, members: Sequence[_Member], window: int | None) -> Group:
        """One chunk of any length, or several of one token each."""
        size = self._layout.block_size_tokens
        first = [_first_block(m.chunk, size, window) for m in members]
        tables = [
            m.chunk.block_table[f : -(-m.chunk.end // size)]
            for m, f in zip(members, first, strict=True)
        ]
        longest = max(map(len, tables))
        # A table is padded with its own first block: whatever a masked key is, it must be finite
        # wherever the sequence's own keys are, as 0 * NaN is NaN.
        padded = self._tensor([[*t, *[t[0]] * (longest - len(t))] for t in tables])
        num_keys = max(m.chunk.end - f * size for m, f in zip(members, first, strict=True))
        tokens = (
            members[0].tokens if len(members) == 1 else self._tensor([m.offset for m in members])
        )
        keys = self._tensor(first)[:, None] * size + torch.arange(num_keys, device=self._device)
        return Group(
            tokens=tokens,
            num_sequences=len(members),
            rows=KVRows(self._layout).of(padded),
            num_keys=num_keys,
            mask=_visible(self.positions[tokens].view(len(members), -1), keys, window),
        )

    def _tensor(self, values: Sequence[object]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


@dataclass(frozen=True, slots=True)
class KVRows:
    """The cache seen as rows of `[token, head_dim]`, one for each (block, layer, k|v, kv_head)."""

    layout: KVLayout

    @property
    def per_layer(self) -> int:
        """Distance of the same row in the next layer."""
        return 2 * self.layout.num_kv_heads

    def of(self, blocks: torch.Tensor) -> torch.Tensor:
        """Rows of layer 0: `[sequence, block]` -> `[k|v, sequence, kv_head, block]`."""
        heads = torch.arange(self.layout.num_kv_heads, device=blocks.device)[:, None]
        keys = blocks[:, None, :] * (self.layout.num_layers * self.per_layer) + heads
        return torch.stack((keys, keys + self.layout.num_kv_heads))


def _length_class(member: _Member) -> int:
    return member.chunk.end.bit_length()


def _first_block(chunk: ForwardChunk, block_size: int, window: int | None) -> int:
    """The first block that any of the chunk's tokens sees."""
    return 0 if window is None else max(0, chunk.start + 1 - window) // block_size


def _opened_blocks(chunks: Sequence[ForwardChunk], block_size: int) -> Iterator[int]:
    """Blocks that get their first token in this step and are not filled by it."""
    for chunk in chunks:
        last_block, filled = divmod(chunk.end, block_size)
        if filled and chunk.start <= last_block * block_size:
            yield chunk.block_table[last_block]


def _visible(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """`[sequence, query]`, `[sequence, key]` positions -> mask `[sequence, 1, query, key]`."""
    distance = queries[:, None, :, None] - keys[:, None, None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
