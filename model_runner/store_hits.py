"""How much of a prefix can be used, where KV groups keep different parts of it. Pure.

```
 blocks               0   1   2   3   4   5   6   7
 full attention       x   x   x   x   x   x   x   .     7 lead
 window of 2 blocks   .   .   x   x   .   x   x   x     7: 5 and 6 are there: a hit
 window of 3 blocks   .   x   x   x   .   x   x   x     7: 4 is not there, so that the next
                                                        candidate ends before it: 4, a hit of both
```
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model_runner.kv_groups import KVGroup

Trailing = Callable[[int, int], int]
"""Takes the index of a group and an end: how many of the blocks just before the end it has, without
a hole. It need not count more than its window."""

MAX_CANDIDATES = 8
"""Prefixes tried, each shorter than the one before, until it counts as a miss."""


def longest_hit(windows: Sequence[KVGroup], num_leading: int, num_trailing: Trailing) -> int:
    """The longest prefix, of at most `num_leading` blocks, of which each of `windows` has what it
    needs; 0 if there is none among the candidates.

    `num_leading`: how many lead, without a hole, in every group without a window.
    """
    hit = num_leading
    for _ in range(MAX_CANDIDATES):
        end = hit
        for index, group in enumerate(windows):
            there = num_trailing(index, hit)
            if there < hit - group.first_block(hit):
                end = min(end, hit - there - 1)  # whatever ends after the hole needs it, too
        if end == hit:
            return hit
        hit = end
    return 0
