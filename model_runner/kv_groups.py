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

from dataclasses import dataclass

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
