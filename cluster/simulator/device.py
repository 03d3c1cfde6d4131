"""The device tier of one instance: the production block pool, and which sequence holds what."""

from __future__ import annotations

from cluster.simulator.profiles import Profile
from cluster.simulator.sequence import SimSequence
from cluster.simulator.workload import output_blocks
from kvstore.tiers.device.pool import BlockPool, PoolEvents


class Device:
    """Blocks in the tables of sequences, and the names that make them findable."""

    def __init__(self, profile: Profile) -> None:
        self.pool = BlockPool(profile.device_blocks)
        self.block_size_tokens = profile.block_size_tokens

    @property
    def used_blocks(self) -> int:
        """Held by somebody."""
        return self.pool.num_blocks - self.pool.num_free

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size_tokens)

    def match(self, sequence: SimSequence) -> None:
        """Begin its table with what is here of its prompt; a token at least is left to compute."""
        assert not sequence.table
        usable = min(len(sequence.blocks), (sequence.known_tokens - 1) // self.block_size_tokens)
        sequence.table = self.pool.match(sequence.blocks[:usable])
        sequence.computed = len(sequence.table) * self.block_size_tokens

    def cached_blocks(self, sequence: SimSequence) -> int:
        """How long a prefix of its prompt is here; holds nothing."""
        pool = self.pool
        for position, block in enumerate(sequence.blocks):
            if block not in pool:
                return position
        return len(sequence.blocks)

    def lengthen(self, sequence: SimSequence, tokens: int, *, spare_blocks: int = 0) -> bool:
        """Blocks for its first `tokens` tokens; False, and nothing, if `spare_blocks` would not be
        left."""
        missing = self.blocks_for(tokens) - len(sequence.table)
        if missing > self.pool.num_free - spare_blocks:
            return False
        if missing > 0:
            sequence.table += self.pool.allocate(missing)
        return True

    def name(self, sequence: SimSequence, first_token: int, last_token: int) -> None:
        """Full blocks of its prompt in tokens [first, last) are (being) computed."""
        first = first_token // self.block_size_tokens
        last = min(last_token // self.block_size_tokens, len(sequence.blocks))
        if last > first:
            self.pool.name(sequence.table[first:last], sequence.blocks[first:last])

    def name_output(self, sequence: SimSequence) -> None:
        """Full blocks that end in generated tokens. The last token's KV is never computed."""
        first = len(sequence.blocks)
        full = min(len(sequence.table), (sequence.known_tokens - 1) // self.block_size_tokens)
        if full > first:
            names = output_blocks(sequence.request.number, full - first)
            self.pool.name(sequence.table[first:full], names)

    def release(self, sequence: SimSequence) -> None:
        self.pool.release(sequence.table)
        sequence.table = []

    def drain_events(self) -> PoolEvents:
        return self.pool.drain_events()
