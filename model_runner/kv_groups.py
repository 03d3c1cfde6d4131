"""Which layers of a model keep their KV alike.

Layers with full attention keep all tokens; layers with a sliding window keep only what a token to
come may still see. Layers of one kind form a group, with blocks, a device cache and block tables of
its own. All groups share one prefix hash chain; what tells their blocks apart is the layout.

```
 tokens          0 ........................................ n
 full attention  [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ][ 6 ][ 7 ]      a prefix is a hit if all are there
 window          . . . . . . . . . . . . . . [ 5 ][ 6 ][ 7 ]   ... or, here, the trailing ones
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.core.layout import KVLayout


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that keep the KV of all tokens, or of the last `window_tokens`."""

    layout: KVLayout
    """Of a block of this group: these layers only."""
    layers: tuple[int, ...]
    """Which of the model's they are."""
    window_tokens: int | None = None
    """A token sees itself and the `window_tokens` - 1 before it; None = all before it."""

    @property
    def window_blocks(self) -> int | None:
        """How many blocks before a block boundary tokens after it may see; None = all."""
        if self.window_tokens is None:
            return None
        return -(-(self.window_tokens - 1) // self.layout.block_size_tokens)

    def first_block(self, num_blocks: int) -> int:
        """The first of `num_blocks` leading blocks that tokens after them may see."""
        return 0 if self.window_blocks is None else max(0, num_blocks - self.window_blocks)

    def first_seen(self, num_tokens: int) -> int:
        """The block of the first token that one at position `num_tokens`, or later, may see."""
        if self.window_tokens is None:
            return 0
        return max(0, num_tokens + 1 - self.window_tokens) // self.layout.block_size_tokens

    @property
    def admission_blocks(self) -> int | None:
        """How many blocks after its hits a request is given when it is admitted, if it is so long;
        None = all that it needs. Enough that it no longer depends on its hits, which others may
        hold too, when it has to ask for more."""
        return None if self.window_blocks is None else self.window_blocks + 1

    def room_tokens(self, num_blocks: int) -> int | None:
        """How long a sequence may become that has so many device blocks to itself; None = as long
        as it likes."""
        if self.window_blocks is not None and num_blocks > 2 * self.window_blocks:
            return None  # hits, and what it is given with them
        return num_blocks * self.layout.block_size_tokens


@dataclass(slots=True)
class BlockTable:
    """Which device blocks of one group hold a sequence's KV, in order.

    ```
     blocks of the sequence   0 ... first ............. end
     block_ids                      [ 0 ][ 1 ] ...
    ```
    Those before `first` are behind the window and were given back.
    """

    block_ids: list[int] = field(default_factory=list)
    first: int = 0
    num_hits: int = 0
    """Leading blocks of the sequence that were found on the device."""

    @property
    def end(self) -> int:
        return self.first + len(self.block_ids)

    def part(self, first: int, end: int) -> list[int]:
        """The device blocks of blocks [first, end) of the sequence."""
        assert self.first <= first
        assert end <= self.end
        return self.block_ids[first - self.first : max(first, end) - self.first]

    def drop_before(self, first: int) -> Sequence[int]:
        """Take the blocks before `first` out of the table."""
        count = max(0, min(first, self.end) - self.first)
        dropped = self.block_ids[:count]
        del self.block_ids[:count]
        self.first += count
        return dropped
