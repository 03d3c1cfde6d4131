"""What is to be written of blocks: themselves, or what a codec makes of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from kvstore.codecs.base import Codec, CodecId
from kvstore.codecs.frame import decode_block, encode_block, encoded_bytes, encoded_bytes_max
from kvstore.codecs.header import HEADER_BYTES, check_layout
from kvstore.core.checksum import checksum
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import LayoutFingerprint
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import Block, BlockInfo
from kvstore.tiers.disk.log import Payload
from kvstore.tiers.disk.record import Encoded
from kvstore.tiers.memory import aligned_buffer

LAYOUTS_MAX = 1024
"""Layouts remembered; blocks of any further one are stored as they are."""
_FIRST_PART_BYTES, _PART_BYTES = 2 << 20, 8 << 20
_THREADS = 2


class Encoder:
    """Thread-safe. Keeps layouts, no blocks."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._layouts: dict[LayoutFingerprint, KVLayout] = {}

    def learn_layout(self, fingerprint: LayoutFingerprint, layout: KVLayout) -> None:
        """Without effect where the codec would gain nothing."""
        if self.codec.id is CodecId.RAW or len(self._layouts) >= LAYOUTS_MAX:
            return
        try:
            check_layout(layout)
        except InvalidArgumentError:
            return
        if encoded_bytes(self.codec, layout) < layout.block_bytes:
            self._layouts[fingerprint] = layout

    def payload(self, block: Block) -> Payload | None:
        """None if the bytes are not those of the checksum. Blocks of an unknown layout or of
        another length than its blocks have, and blocks that the codec cannot hold its error bound
        for, go as they are."""
        if checksum(block.data) != block.checksum:
            return None
        layout = self._layouts.get(block.key.layout)
        if layout is not None and block.data.nbytes == layout.block_bytes:
            return self._encode(block, layout) or _as_it_is(block)
        return _as_it_is(block)

    def _encode(self, block: Block, layout: KVLayout) -> Payload | None:
        """Decodes at once too: what will come back has a checksum of its own."""
        memory = aligned_buffer(encoded_bytes_max(self.codec, layout))
        header = encode_block(self.codec, block.data, layout, memory)
        if header.fell_back:
            return None
        data = memory[: HEADER_BYTES + header.payload_bytes]
        decoded = memoryview(bytearray(block.data.nbytes))
        decode_block(data, decoded)
        comes_back = BlockInfo(block.key, decoded.nbytes, checksum(decoded))
        return Payload(comes_back, data, Encoded(data.nbytes, checksum(data)))


@dataclass(frozen=True, slots=True)
class Prepared:
    payloads: list[Payload]
    corrupt: int
    """Blocks left out because their bytes are not those of their checksum."""


class Preparer:
    """Checks and encodes blocks one part ahead of whoever writes them, so that processors work
    while the disk does. Owns its threads until `close`. One batch at a time."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="kvstore-disk-prepare")

    def prepare(self, blocks: Sequence[Block]) -> Generator[Prepared, None, None]:
        """In order. Bound: two parts of 8 MiB (or one block) in memory, beyond the blocks. Nothing
        touches the blocks any more once the generator is closed."""
        ahead: list[Future[list[Payload | None]]] = []
        try:
            for part in parts(blocks):
                behind, ahead = ahead, self._start(part)
                if behind:
                    yield _gather(behind)
            if ahead:
                yield _gather(ahead)
        finally:
            wait(ahead)

    def _start(self, part: Sequence[Block]) -> list[Future[list[Payload | None]]]:
        step = -(-len(part) // _THREADS)
        return [
            self._pool.submit(self._payloads, part[i : i + step]) for i in range(0, len(part), step)
        ]

    def _payloads(self, blocks: Sequence[Block]) -> list[Payload | None]:
        return [self._encoder.payload(block) for block in blocks]

    def close(self) -> None:
        self._pool.shutdown()


def parts(blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
    """Consecutive blocks of at most 8 MiB together, at least one each. The first parts are smaller,
    for the disk waits for the first one."""
    start, size, limit = 0, 0, _FIRST_PART_BYTES
    for i, block in enumerate(blocks):
        if i > start and size + block.data.nbytes > limit:
            yield blocks[start:i]
            start, size, limit = i, 0, min(2 * limit, _PART_BYTES)
        size += block.data.nbytes
    if start < len(blocks):
        yield blocks[start:]


def _gather(futures: Sequence[Future[list[Payload | None]]]) -> Prepared:
    results = [payload for future in futures for payload in future.result()]
    payloads = [payload for payload in results if payload is not None]
    return Prepared(payloads, len(results) - len(payloads))


def _as_it_is(block: Block) -> Payload:
    info = BlockInfo(block.key, block.data.nbytes, block.checksum)
    return Payload(info, block.data, None)
